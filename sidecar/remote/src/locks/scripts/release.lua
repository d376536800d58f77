-- ARGV: epoch, owner, counter
local owner, token = ARGV[2], ARGV[3]
if s[3] and not s[4] then
  local held, ends, _, _, by = string.match(s[3], '^(%d+):(%d+):(%d+):([^:]*):(.*)$')
  if held == token and by == owner and tonumber(ends) > t then
    redis.call('HDEL', S, X)
    return {1}
  end
end
