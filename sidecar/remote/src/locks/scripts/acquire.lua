-- ARGV: epoch, mode (s|x), <lease us>:<ticket>:<owner>, longest queue (0: does not wait). The counter, if it is granted.
local mode, asker = ARGV[2], ARGV[3]
-- The common case, but for one in a hundred, which looks for garbage first.
local sweeps = sub(now, -2) == '00'
if mode == 'x' and is_later and not (s[3] or s[4] or sweeps) then
  call('HSET', S, 'c', now, X, now .. ':' .. now .. ':' .. asker)
  return now
end
