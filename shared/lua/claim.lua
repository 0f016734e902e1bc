-- claim: queued -> running, owned by one worker under a fresh attempt id; or the request ends here (cancelled, expired,
-- too many attempts).  A retried claim with the same attempt id gives the same answer.
-- @include clock enqueue rate dead_letter finish
-- KEYS  1 run  2 dead  3 queue  4 rec  5 body  6 log  7 chan  8 tenants  9 deadlines  10 fin  11 dlq
--       12 workers  13 fair (the queue again where it has none)  14 ledger  15 sched  16 lanes
--       17.. ledgers of all queues from which is pulled
-- ARGV  1 worker id  2 entry id  3 rid  4 attempt id  5 most claims  6 result TTL (ms)
--       7 frame for queue_timeout  8 frame for cancelled  9 frame for too many attempts  10 frame for deadline_exceeded
--       11 queue's name  12.. names of all queues from which is pulled
-- Returns  {'OK', body, log, claims, queued_at_ms, started_at_ms, record}   the worker owns it now; record: all its fields
--                              and values, msgpack, by which `restore` can bring it back
--          {'SKIP', state}    the entry is stale (delivered twice, or cancelled meanwhile)
--          {'GONE'}           no record (the server was flushed)
--          {'ENDED', reason}  it ended here
--          {'PAUSED'}         its lane is paused, and it had not started before: it is back in its place
-- Error 'FENCED' when the worker is condemned.   Cost: about 45 us.
if redis.call('EXISTS', KEYS[2]) == 1 then return redis.error_reply('FENCED') end
local v = redis.call('HMGET', KEYS[4], 'state', 'deadline_ms', 'cancel', 'entry', 'attempt', 'owner', 'claims',
  'queued_at_ms', 'started_at_ms', 'finish_by_ms', 'tenant', 'cost', 'bytes')
local state = v[1]
local q = {queue = KEYS[3], ledger = KEYS[14], fair = KEYS[13] ~= KEYS[3] and KEYS[13] or nil}
local first = tonumber(v[7] or '0') == 0
if first and state == 'queued' and v[4] == ARGV[2] and not v[3]
  and redis.call('HGET', KEYS[16], ARGV[11] .. '.paused') == '1' then
  -- a blocking read knows no pauses; its fair tag may be gone, so it goes to where its lane is now
  redis.call('XACK', KEYS[3], 'g', ARGV[2])
  if q.fair then redis.call('ZADD', q.fair, 'NX', redis.call('HGET', q.ledger, 'v') or '0', ARGV[2]) end
  return {'PAUSED'}
end
dequeue(q, ARGV[2], v[11] or '', v[12] or 0, v[13] or 0, first)
if not state then return {'GONE'} end
local function owned(claims, started_at_ms)
  return {'OK', redis.call('GET', KEYS[5]) or '', redis.call('GET', KEYS[6]) or '', claims, tonumber(v[8]), started_at_ms,
    cmsgpack.pack(redis.call('HGETALL', KEYS[4]))}
end
if state == 'running' and v[5] == ARGV[4] and v[6] == ARGV[1] then return owned(tonumber(v[7]), tonumber(v[9])) end
if state ~= 'queued' or v[4] ~= ARGV[2] then return {'SKIP', state} end
local k = {rec = KEYS[4], body = KEYS[5], log = KEYS[6], chan = KEYS[7], tenants = KEYS[8], deadlines = KEYS[9], fin = KEYS[10]}
local now = now_ms()
if v[3] then
  finish(k, ARGV[3], 'cancelled', v[3], ARGV[8], ARGV[6])
  return {'ENDED', 'cancelled'}
end
if tonumber(v[2]) > 0 and now >= tonumber(v[2]) then
  local reason, frame = 'queue_timeout', ARGV[7]
  if not first then reason, frame = 'deadline_exceeded', ARGV[10] end -- it had started: see expire
  finish(k, ARGV[3], 'expired', reason, frame, ARGV[6])
  return {'ENDED', reason}
end
local claims = redis.call('HINCRBY', KEYS[4], 'claims', 1)
if claims > tonumber(ARGV[5]) then
  dead_letter(KEYS[11], ARGV[3], KEYS[4], KEYS[5], 'too_many_attempts')
  finish(k, ARGV[3], 'failed', 'too_many_attempts', ARGV[9], ARGV[6])
  return {'ENDED', 'too_many_attempts'}
end
local left = tonumber(redis.call('HGET', KEYS[14], 'n') or '0')
local backlog = left > 0
if not backlog then -- in this queue; then perhaps in another one, unless that is paused
  local flags = {}
  for i = 12, #ARGV do flags[i - 11] = ARGV[i] .. '.paused' end
  flags = redis.call('HMGET', KEYS[16], unpack(flags))
  for i = 17, #KEYS do backlog = backlog or (flags[i - 16] ~= '1' and redis.call('EXISTS', KEYS[i]) == 1) end
end
local kept = redis.call('HMGET', KEYS[15], 'rate:' .. ARGV[11], 'work')
-- its own id may not be among the workers yet
redis.call('HSET', KEYS[15], 'rate:' .. ARGV[11], drained(kept[1], now, left),
  'work', worked(kept[2], now, tonumber(v[12] or '0'), math.max(1, redis.call('HLEN', KEYS[12])), backlog))
redis.call('HSET', KEYS[4], 'state', 'running', 'owner', ARGV[1], 'attempt', ARGV[4], 'started_at_ms', now)
redis.call('HSET', KEYS[1], ARGV[3], ARGV[4])
if tonumber(v[10] or '0') > 0 then
  redis.call('HSET', KEYS[4], 'deadline_ms', v[10])
  redis.call('ZADD', KEYS[9], v[10], ARGV[3])
end
-- whoever owns something must be known to the reapers, also when a flush or a failover has lost its card
redis.call('HSETNX', KEYS[12], ARGV[1], '')
return owned(claims, now)
