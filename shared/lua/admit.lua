-- admit: nothing -> queued.  One atomic, idempotent step; safe to send twice.
-- @include clock enqueue rate
-- KEYS  1 idem  2 rec  3 body  4 queue  5 tenants  6 deadlines  7 fair  8 ledger  9 sched  10 lanes  11 output
--       in mode `reject` only: 12, 13 fair of the other lanes  14.. run of each live worker
-- ARGV  1 rid  2 fingerprint  3 lane  4 body (bytes)  5 tenant  6 tenant cap (requests in the system)
--       7 prompt (tokens)  8 output limit (tokens, 0 = none)  9 sequences
--       10 start by (Unix ms, 0 = no deadline)
--       11 finish by (Unix ms, 0 = the first deadline stays): takes the deadline's place once the request is claimed
--       12 TTL of the idempotency key (ms, 0 = no key)
--       13 '1' = the key decides; '0' = it is only written, for a client that may send the request again
--       14 rid that may lose the key to this request ('' = none): its end has set the key free
--       15 how long record and log stay after the end (ms, 0 = the ending script's own TTL)
--       16 '1' = the request goes on when its client is gone
--       17..19 the lane's bounds: requests, bytes, cost (tokens)  20 most of them that one tenant may hold (0..1)
--       21 slots: sequences that the pool can run, in mode `reject`; '' in mode `queue`
--       22 output (tokens) that is expected of a tenant and a pool of which nothing is known
--       23 route that the client called, 24 model that it asked for ('' = leave that out)
--       25 what its tenant owes for it in the lane, as a part of its cost (1; less for a batch that is behind its time)
--       26 trace in which it was admitted (traceparent); left out where there is none
-- The lane's settings in `lanes` go before ARGV 17 to 19, but a bound of 0 requests lets nothing in whatever they say.
-- Returns  {'OK', rid, depth}         queued, or was queued by this very call before
--          {'DUP', rid}               the idempotency key belongs to rid, another request
--          {'CONFLICT', rid}          the key or the id is known with another fingerprint
--          {'EXPIRED'}                its deadline has passed
--          {'TENANT', in_system}      the tenant's cap
--          {'CLOSED'}                 the lane takes nothing new (it is drained)
--          {'FULL', depth, after_ms}  a bound of the lane      {'SHARE', held, after_ms}  the tenant's part of it
--          {'BUSY', running, after_ms}  no slot is free        {'LATE', wait_ms, after_ms}  it would not start in time
--          after_ms: when to come again, -1 = unknown. Every refusal is given a later turn, as fast as the lane drains.
-- Cost: about 48 us.
local known = redis.call('HGET', KEYS[2], 'fingerprint')
if known then
  if known == ARGV[2] then return {'OK', ARGV[1], 0} end
  return {'CONFLICT', ARGV[1]}
end
local idem_ttl_ms = tonumber(ARGV[12])
if idem_ttl_ms > 0 and ARGV[13] == '1' then
  local rid, fingerprint = (redis.call('GET', KEYS[1]) or ''):match('^([^|]+)|(.+)$')
  -- its own key stands there when the server has lost the record alone: then the request is admitted again
  if rid and rid ~= ARGV[1] and (rid ~= ARGV[14] or fingerprint ~= ARGV[2]) then
    if fingerprint ~= ARGV[2] then return {'CONFLICT', rid} end
    return {'DUP', rid}
  end
end
local now = now_ms()
local lane, tenant, bytes, start_by = ARGV[3], ARGV[5], #ARGV[4], tonumber(ARGV[10])
if start_by > 0 and now >= start_by then return {'EXPIRED'} end
local in_system = tonumber(redis.call('HGET', KEYS[5], tenant) or '0')
if in_system >= tonumber(ARGV[6]) then return {'TENANT', in_system} end

local set = redis.call('HMGET', KEYS[10], lane .. '.draining', lane .. '.max_requests', lane .. '.max_bytes',
  lane .. '.max_tokens')
if set[1] == '1' then return {'CLOSED'} end
local plan = redis.call('HMGET', KEYS[9], 'rate:' .. lane, 'turn:' .. lane, 'arrivals')
local rate = drain_rate(plan[1])
-- the next turn of those that are refused: one by one, as fast as the lane drains, at most half a minute ahead
local function turn()
  if not rate then return -1 end
  local at = math.max(now, tonumber(plan[2] or '0')) + 1000 / rate
  if at - now <= 30000 then redis.call('HSET', KEYS[9], 'turn:' .. lane, string.format('%.0f', at)) end
  return math.ceil(at - now)
end

local out = redis.call('HMGET', KEYS[11], 't:' .. tenant, 'pool')
local expected, limit = tonumber(out[1] or out[2] or ARGV[22]), tonumber(ARGV[8])
if limit > 0 then expected = math.min(limit, expected) end
local cost = math.max(1, math.ceil(tonumber(ARGV[7]) + expected * tonumber(ARGV[9])))
local q = {queue = KEYS[4], fair = KEYS[7], ledger = KEYS[8]}
local ledger = waiting(q, tenant)
local held = {} -- v, n, c, b, and n, c, f of the tenant
for i = 1, 7 do held[i] = tonumber(ledger[i] or '0') end
local bound = {tonumber(ARGV[17] ~= '0' and set[2] or ARGV[17]), tonumber(set[3] or ARGV[18]), tonumber(set[4] or ARGV[19])}
-- one request is let in however big it is: it would never fit
if held[2] >= bound[1] or (held[2] > 0 and (held[4] + bytes > bound[2] or held[3] + cost > bound[3])) then
  return {'FULL', held[2], turn()}
end
-- a tenant may hold so many times what is still free: one alone fills its share, and others always find room
local share = tonumber(ARGV[20])
if share < 1 and held[5] > 0 then
  local times = share / (1 - share)
  -- 0.9 / 0.1 is a little over 9: without the tolerance one tenant would have the last free place of a short queue, too
  if held[5] + 1e-6 >= times * (bound[1] - held[2]) or held[6] + cost > times * (bound[3] - held[3]) then
    return {'SHARE', held[5], turn()}
  end
end
if ARGV[21] ~= '' then
  local taken = held[2] -- and what had started in the other lanes
  for i = 12, 13 do taken = taken + redis.call('ZCOUNT', KEYS[i], '-inf', '(0') end
  for i = 14, #KEYS do taken = taken + redis.call('HLEN', KEYS[i]) end
  if taken >= tonumber(ARGV[21]) then return {'BUSY', taken, turn()} end
end
-- what lies ahead is counted only if it would be too late behind everything that waits
if start_by > 0 and rate and now + 1000 * held[2] / rate > start_by then
  local ahead = redis.call('ZCOUNT', KEYS[7], '-inf', math.max(held[1], held[7]))
  local wait_ms = math.ceil(1000 * ahead / rate)
  if now + wait_ms > start_by then return {'LATE', wait_ms, now + wait_ms - start_by} end
end

local entry = enqueue(q, ARGV[1], tenant, cost, bytes, false, ledger, tonumber(ARGV[25]))
redis.call('HSET', KEYS[9], 'arrivals', arrived(plan[3], now, cost))
redis.call('SET', KEYS[3], ARGV[4])
local facts = {'fingerprint', ARGV[2], 'lane', lane, 'queue', lane, 'entry', entry, 'tenant', tenant,
  'deadline_ms', ARGV[10], 'finish_by_ms', ARGV[11], 'cost', cost, 'bytes', bytes, 'claims', '0', 'kills', '0',
  'queued_at_ms', now}
local function also(name, value) facts[#facts + 1], facts[#facts + 2] = name, value end
if tonumber(ARGV[15]) > 0 then also('keep_ms', ARGV[15]) end
if ARGV[16] == '1' then also('stays', '1') end
if ARGV[23] ~= '' then also('endpoint', ARGV[23]) end
if ARGV[24] ~= '' then also('model', ARGV[24]) end
if ARGV[26] then also('trace', ARGV[26]) end
if idem_ttl_ms > 0 and ARGV[13] == '1' then
  also('idem', KEYS[1])
  also('idem_ttl_ms', ARGV[12])
end
redis.call('HSET', KEYS[2], 'state', 'queued', unpack(facts))
if idem_ttl_ms > 0 then redis.call('SET', KEYS[1], ARGV[1] .. '|' .. ARGV[2], 'PX', idem_ttl_ms) end
redis.call('HINCRBY', KEYS[5], tenant, 1)
if start_by > 0 then redis.call('ZADD', KEYS[6], ARGV[10], ARGV[1]) end
return {'OK', ARGV[1], held[2] + 1}
