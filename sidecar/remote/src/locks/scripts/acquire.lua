-- ARGV: epoch, owner, mode (s|x), ticket, lease us, waits (0|1), longest queue
local owner, mode, ticket, lease = ARGV[2], ARGV[3], ARGV[4], tonumber(ARGV[5])
if mode == 'x' and not s[3] and not s[4] then
  local token = text(counter)
  redis.call('HSET', S, 'c', token, X, token .. ':' .. text(t + lease) .. ':' .. ARGV[5] .. ':' .. ticket .. ':' .. owner)
  if counter % 16 ~= 0 then return {'granted', token} end
end
