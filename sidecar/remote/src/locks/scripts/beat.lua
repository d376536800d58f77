-- KEYS: L. ARGV: client. It lives for three more seconds; the long dead leave the list.
local clock = redis.call('TIME')
local t = clock[1] * 1000000 + clock[2]
redis.call('ZADD', KEYS[1], string.format('%.0f', t + 3000000), ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('%.0f', t - 60000000))
redis.call('PEXPIRE', KEYS[1], 90000000)
return 1
