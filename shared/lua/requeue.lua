-- requeue: running -> queued again, with its log; whether a text that is visible can be continued is decided by the
-- worker that claims it next, which alone knows the engine. Called for each request of a condemned worker (a kill), or by
-- a worker for its own (a hand-back, which is not a kill).
-- @include clock enqueue finish
-- KEYS  1 dead  2 run  3 rec  4 retry queue  5 body  6 log  7 chan  8 tenants  9 deadlines  10 fin  11 dlq
-- ARGV  1 rid  2 attempt id  3 '1' = hand-back by the owner  4 most kills  5 result TTL (ms)
--       6 unused  7 frame for too many attempts  8 frame for cancelled
-- Returns  'OK' queued again   'ENDED' it ended here   'ALIVE' the worker is not condemned   'STALE' not its any more
if ARGV[3] ~= '1' and redis.call('EXISTS', KEYS[1]) == 0 then return 'ALIVE' end
if redis.call('HGET', KEYS[2], ARGV[1]) ~= ARGV[2] then return 'STALE' end
redis.call('HDEL', KEYS[2], ARGV[1])
local v = redis.call('HMGET', KEYS[3], 'state', 'attempt', 'cost', 'cancel', 'deadline_ms')
if v[1] ~= 'running' or v[2] ~= ARGV[2] then return 'STALE' end
local k = {rec = KEYS[3], body = KEYS[5], log = KEYS[6], chan = KEYS[7], tenants = KEYS[8], deadlines = KEYS[9], fin = KEYS[10]}
if v[4] then
  finish(k, ARGV[1], 'cancelled', v[4], ARGV[8], ARGV[5])
  return 'ENDED'
end
if ARGV[3] ~= '1' and redis.call('HINCRBY', KEYS[3], 'kills', 1) >= tonumber(ARGV[4]) then
  redis.call('XADD', KEYS[11], 'MAXLEN', '~', '10000', '*', 'rid', ARGV[1], 'reason', 'too_many_attempts',
    'kills', redis.call('HGET', KEYS[3], 'kills'), 'body', redis.call('GET', KEYS[5]) or '')
  finish(k, ARGV[1], 'failed', 'too_many_attempts', ARGV[7], ARGV[5])
  return 'ENDED'
end
local entry = enqueue(KEYS[4], ARGV[1], v[3])
redis.call('HSET', KEYS[3], 'state', 'queued', 'queue', 'retry', 'entry', entry)
redis.call('HDEL', KEYS[3], 'owner', 'attempt')
if tonumber(v[5]) > 0 then redis.call('ZADD', KEYS[9], v[5], ARGV[1]) end
return 'OK'
