-- What scripts about one lock begin with. All keys lie in one slot.
--   S  hash of the domain: e (epoch), r and p (the server's ids), w (the epoch waits, see epoch.lua), c (the last counter), and
--      of each lock
--        x:<name> = <counter>:<since>:<lease>:<ticket>:<owner>, its exclusive holder: a lease from then on, by Redis TIME, in us
--        q:<name> = when it was last said that it has shared holders or a queue
--   H  hash of a lock with shared holders: e (epoch), m (the longest lease), o:<owner> = <counter>:<ticket>
--   Z  sorted set: shared holders by the end of their lease
--   Q  sorted set: waiters by arrival, <mode>:<lease>:<ticket>:<owner>
--   L  live clients by when they count as dead;  C  names of locks with a queue
-- A lock that nobody shares or waits for lies in S alone, and scripts look at that case first. If Redis evicts S, that is
-- a new epoch, as if e or c are no numbers; if it evicts H or Z, the rest does not fit any more and the lock is void: it is
-- never half a lock. A key of another type, or a record of a holder that is none, is left alone and told.
local S, H, Z, Q, L, C = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local epoch = ARGV[1]
local call, try, format, match, sub = redis.call, redis.pcall, string.format, string.match, string.sub
local name = sub(H, #S + 4)
local X, F = 'x:' .. name, 'q:' .. name
local s = call('HMGET', S, 'e', 'c', X, F)
if s[1] ~= epoch then return {'epoch'} end
local clock = call('TIME')
-- In us, as text: a script's numbers cost as much as its calls, and what is usual needs none.
local now = clock[1] .. sub('00000' .. clock[2], -6)
-- Whether it can be the next counter, which is greater than all before. It is, unless the clock was set back.
local is_later = s[2] and #s[2] == #now and s[2] < now
if not is_later and not number(s[2]) then return {'epoch'} end

-- How many were told: none of those to whom the user may not publish.
local function publish_to(client, message)
  local heard = try('PUBLISH', S .. ':wake:' .. client, message)
  return type(heard) == 'number' and heard or 0
end

-- Clients say every second that they live, for three seconds; a promise for longer is a clock that was set back.
local ALIVE = 3000000
