-- KEYS: the duty. ARGV: client, lease ms, how the clients' channels begin. One client has it until it does not ask again,
-- leaves it by a lease of 0, or hears nothing any more: its connection ended.
local holder = redis.pcall('GET', KEYS[1])
if type(holder) == 'string' and holder ~= ARGV[1] then
  -- Who may not publish cannot tell (the error is a table); the lease ends then.
  if redis.pcall('PUBLISH', ARGV[3] .. holder, '?') ~= 0 then return 0 end
end
if ARGV[2] == '0' then
  redis.call('DEL', KEYS[1])
  return 0
end
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return 1
