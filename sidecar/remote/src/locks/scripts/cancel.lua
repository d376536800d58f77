-- ARGV: epoch, owner, ticket, mode (s|x), lease us
local owner, ticket = ARGV[2], ARGV[3]
if not open() then return UNREADABLE end
local token, _, by = held_by(owner)
if token and by == ticket then drop(owner) end
if s[4] then call('ZREM', Q, ARGV[4] .. ':' .. ARGV[5] .. ':' .. ticket .. ':' .. owner) end
pass_on()
return 1
