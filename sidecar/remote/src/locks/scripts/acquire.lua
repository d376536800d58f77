-- ARGV: epoch, owner, mode (s|x), ticket, lease us, longest queue (0: does not wait). The counter, if it is granted.
local owner, mode, ticket, lease = ARGV[2], ARGV[3], ARGV[4], ARGV[5]
if mode == 'x' and not s[3] and not s[4] then
  call('HSET', S, 'c', counter, X, format('%d:%d:%s:%s:%s', counter, t + lease, lease, ticket, owner))
  if counter % 16 ~= 0 then return counter end
end
lease = tonumber(lease)
