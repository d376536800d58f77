-- What scripts about one lock need where it is shared, waited for, or its lease has ended.
local TTL = 90000000 -- 25 h, longer than any lease: garbage ends by itself
local t = tonumber(now)
local counter = s[2] + 1
if t > counter then counter = t end

local function text(n) return format('%d', n) end

-- Who takes it stores it as `c`.
local function next_counter()
  counter = counter + 1
  return text(counter - 1)
end

-- The client of a ticket, which is <client>-<number>.
local function client(ticket) return match(ticket, '^(.*)%-') end

-- What somebody else wrote where a record belongs: nothing is done before that is mended.
local UNREADABLE = {'unreadable'}

local function publish(ticket, message) return publish_to(client(ticket), message) end

-- mode, lease, ticket, owner; nothing if somebody else wrote it
local function waiter(w) return match(w, '^([sx]):(%d+):([^:%-]+%-%d+):(.+)$') end

-- The exclusive holder: owner, token, since, lease, ticket. The number of shared ones, and their longest lease.
local x, n, longest = nil, 0, 0

local function record() return format('%s:%d:%d:%s:%s', x.token, x.since, x.lease, x.ticket, x.owner) end

local function put_exclusive()
  call('HSET', S, X, record())
end

-- The record of an exclusive holder that let go is still stored, since another's may take its place.
local is_left = false

local function drop_shared(owner)
  call('HDEL', H, 'o:' .. owner)
  call('ZREM', Z, owner)
  n = n - 1
end

-- Reads who holds it; ends leases, voids what is of another epoch or incomplete. A lease that begins later, or ends later
-- than the longest that was asked for, is a clock that was set back: it counts from now. Whether it can be read.
local function open()
  if s[3] then
    local token, since, lease, ticket, owner = match(s[3], '^(%d+):(%d+):(%d+):([^:]*):(.*)$')
    if not (number(token) and number(since) and number(lease) and number(lease) <= TTL * 1000) then return false end
    x = {token = token, since = tonumber(since), lease = tonumber(lease), ticket = ticket, owner = owner}
    if x.since > t then
      x.since = t
      put_exclusive()
    end
    if x.since + x.lease <= t then
      x = nil
      call('HDEL', S, X)
    end
  end
  if x or not s[4] then return true end
  n = call('ZCARD', Z)
  local h = call('HMGET', H, 'e', 'm')
  longest = number(h[2] or '0')
  local is_whole = h[1] == epoch and longest and longest <= TTL * 1000 and call('HLEN', H) == n + 2
  local fits = (n == 0 and not h[1]) or is_whole
  if not fits then
    call('DEL', H, Z)
    n, longest = 0, 0
  end
  if n == 0 then return true end
  for _, owner in ipairs(call('ZRANGEBYSCORE', Z, '(' .. text(t + longest), '+inf', 'LIMIT', 0, 1024)) do
    call('ZADD', Z, text(t + longest), owner)
  end
  for _, owner in ipairs(call('ZRANGEBYSCORE', Z, '-inf', t, 'LIMIT', 0, 1024)) do drop_shared(owner) end
  if n == 0 then call('DEL', H) end
  return true
end

-- What the owner holds, for itself: token, mode, by which ticket.
local function held_by(owner)
  if x and x.owner == owner then return x.token, 'x', x.ticket end
  local h = n > 0 and call('HGET', H, 'o:' .. owner)
  if not h then return nil end
  local token, ticket = match(h, '^(%d+):(.*)$')
  return token, token and 's', ticket
end

local function put_shared(owner, token, ticket, ends, lease)
  longest = math.max(longest, lease)
  call('HSET', H, 'e', epoch, 'm', text(longest), 'o:' .. owner, token .. ':' .. ticket)
  call('ZADD', Z, 'GT', text(ends), owner)
  call('PEXPIRE', H, TTL)
  call('PEXPIRE', Z, TTL)
end

local function grant(owner, mode, ticket, lease)
  local token = next_counter()
  if mode == 'x' then
    x = {token = token, since = t, lease = lease, ticket = ticket, owner = owner}
    call('HSET', S, 'c', token, X, record())
    is_left = false
  else
    call('HSET', S, 'c', token, F, text(t))
    put_shared(owner, token, ticket, t + lease, lease)
    n = n + 1
  end
  return token
end

-- Lets go of what the owner holds.
local function drop(owner)
  if x and x.owner == owner then
    x, is_left = nil, true
  else
    drop_shared(owner)
    if n == 0 then call('DEL', H) end
  end
end

local function admits(mode) return not x and (mode == 's' or n == 0) end

-- Who wrote no ticket is no waiter either.
local function is_dead(ticket)
  local till = ticket and call('ZSCORE', L, client(ticket))
  return not till or tonumber(till) < t or tonumber(till) > t + ALIVE
end

-- Hands the lock to the first live waiters if their turn has come, and tells them. Who cannot be told stays in the queue,
-- first, and asks by itself. It is granted before it is told: a write that Redis refuses ends the script, and must not come
-- behind the message. Whether an exclusive holder has it now.
local function hand_over()
  for told = 0, 64 do
    local w = call('ZRANGE', Q, 0, 0)[1]
    if not w then return end
    local mode, lease, ticket, owner = waiter(w)
    if is_dead(ticket) then
      call('ZREM', Q, w)
    elseif not admits(mode) then
      return
    elseif told == 64 or held_by(owner) then
      publish(ticket, 'w' .. ticket)
      return
    else
      local token = grant(owner, mode, ticket, tonumber(lease))
      if publish(ticket, 'g' .. ticket .. ' ' .. epoch .. ' ' .. token) == 0 then return drop(owner) end
      call('ZREM', Q, w)
      if mode == 'x' then return true end
    end
  end
end

-- Removes what nobody needs any more.
local function tidy()
  if is_left then call('HDEL', S, X) end
  if not s[4] or call('EXISTS', Q) == 1 then return end
  call('SREM', C, name)
  if n == 0 then call('HDEL', S, F) end
end

-- Hands over, and removes what nobody needs any more: behind an exclusive holder its successor does that, when it lets go.
local function pass_on()
  if not hand_over() then tidy() end
end

-- Locks whose holders died and that nobody asked for since: some are looked at from time to time.
local function sweep()
  local some = call('HRANDFIELD', S, 64, 'WITHVALUES')
  for at = 1, #some, 2 do
    local kind = sub(some[at], 1, 2)
    local since, kept = tonumber(some[at + 1]), TTL * 1000
    if kind == 'x:' then
      since, kept = match(some[at + 1], '^%d+:(%d+):(%d+)')
      kept = kept and kept + 60000000
    end
    if (kind == 'x:' or kind == 'q:') and since and kept and since + kept < t then
      call('HDEL', S, some[at])
      if kind == 'q:' then call('SREM', C, sub(some[at], 3)) end
    end
  end
end
