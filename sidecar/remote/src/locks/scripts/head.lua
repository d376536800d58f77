-- What scripts about one lock begin with. All keys lie in one slot.
--   S  hash of the domain: e (epoch), r and p (the server's ids), c (the last counter), and of each lock
--        x:<name> = <counter>:<end>:<lease>:<ticket>:<owner>, its exclusive holder (times in us, the end by Redis TIME),
--        q:<name> = when it was last said that it has shared holders or a queue
--   H  hash of a lock with shared holders: e (epoch), m (the longest lease), o:<owner> = <counter>:<ticket>
--   Z  sorted set: shared holders by the end of their lease
--   Q  sorted set: waiters by arrival, <mode>:<lease>:<ticket>:<owner>
--   L  live clients by when they count as dead;  C  names of locks with a queue
-- A lock that nobody shares or waits for lies in S alone, and scripts look at that case first. If Redis evicts S, that is
-- a new epoch; if it evicts H or Z, the rest does not fit any more and the lock is void: it is never half a lock.
local S, H, Z, Q, L, C = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local epoch = ARGV[1]
local call, format, match = redis.call, string.format, string.match
local name = string.sub(H, #S + 4)
local X, F = 'x:' .. name, 'q:' .. name
local s = call('HMGET', S, 'e', 'c', X, F)
if s[1] ~= epoch then return {'epoch'} end
local clock = call('TIME')
local t = clock[1] * 1000000 + clock[2]

local function text(n) return format('%d', n) end

-- Greater than all before, also if the clock was set back.
local counter = s[2] and s[2] + 1 or 1
if t > counter then counter = t end

-- Clients say every second that they live, for three seconds; a promise for longer is a clock that was set back.
local ALIVE = 3000000
