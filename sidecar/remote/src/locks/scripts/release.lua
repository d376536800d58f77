-- ARGV: epoch, owner, counter. Whether it was held until now.
local owner, token = ARGV[2], ARGV[3]
if s[3] and not s[4] then
  local held, ends, by = match(s[3], '^(%d+):(%d+):%d+:[^:]*:(.*)$')
  if held == token and by == owner and tonumber(ends) > t then
    call('HDEL', S, X)
    return 1
  end
end
