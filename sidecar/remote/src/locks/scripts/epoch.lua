-- Confirms the epoch, or begins a new one. KEYS: E. ARGV: the greatest epoch known, run id, replication id (both empty
-- if the server does not tell). Returns the epoch and whether it is new.
local mirror = redis.call('HMGET', KEYS[1], 'e', 'r', 'p')
local known, epoch = tonumber(ARGV[1]), tonumber(mirror[1] or '0')
local same = ARGV[2] == '' or (mirror[2] == ARGV[2] and mirror[3] == ARGV[3])
if mirror[1] and epoch >= known and same then return {mirror[1], 0} end
-- Not below the server's seconds: a later epoch is greater even if nobody is left who knew the last one.
epoch = math.max(math.max(epoch, known) + 1, tonumber(redis.call('TIME')[1]))
local text = string.format('%.0f', epoch)
redis.call('HSET', KEYS[1], 'e', text, 'r', ARGV[2], 'p', ARGV[3])
return {text, 1}
