-- requeue: running -> queued again, with its log; whether a text that is visible can be continued is decided by the
-- worker that claims it next, which alone knows the engine. Called for each request of a condemned worker (a kill), or by
-- a worker for its own (a hand-back or a pre-emption; neither is a kill). It waits in its lane, before what has not started.
-- A kill is counted; a request with two kills is a suspect and waits in quarantine (see release), the third kill sets it
-- aside. Requests that died beside the suspect that was out are not blamed: the caller takes that one last.
-- @include clock enqueue dead_letter finish
-- KEYS  1 dead  2 run  3 rec  4 body  5 log  6 chan  7 tenants  8 deadlines  9 fin  10 dlq  11 suspect
--       12 quarantine queue  13 its ledger  then per lane: queue, fair, ledger
-- ARGV  1 rid  2 attempt id  3 '1' = hand-back by the owner, '2' = pre-emption by the owner  4 most kills  5 result TTL (ms)
--       6 frame for too many attempts  7 frame for cancelled  8 kills that make a suspect  9.. names of the lanes
-- Returns  'OK' queued again   'ENDED' it ended here   'ALIVE' the worker is not condemned   'STALE' not its any more
if ARGV[3] == '0' and redis.call('EXISTS', KEYS[1]) == 0 then return 'ALIVE' end
if redis.call('HGET', KEYS[2], ARGV[1]) ~= ARGV[2] then return 'STALE' end
redis.call('HDEL', KEYS[2], ARGV[1])
local v = redis.call('HMGET', KEYS[3], 'state', 'attempt', 'cost', 'cancel', 'deadline_ms', 'owner', 'tenant', 'bytes', 'lane')
if v[1] ~= 'running' or v[2] ~= ARGV[2] then return 'STALE' end
local k = {rec = KEYS[3], body = KEYS[4], log = KEYS[5], chan = KEYS[6], tenants = KEYS[7], deadlines = KEYS[8], fin = KEYS[9]}
if v[4] then
  finish(k, ARGV[1], 'cancelled', v[4], ARGV[7], ARGV[5])
  return 'ENDED'
end
local q, name = lane_among(v[9], 14, 9)
local what = 'handed_back'
if ARGV[3] == '2' then
  what = 'preempted'
  redis.call('HINCRBY', KEYS[3], 'preempted', 1)
elseif ARGV[3] == '0' then
  local suspect = redis.call('GET', KEYS[11])
  local beside = suspect and suspect ~= ARGV[1] and redis.call('HEXISTS', KEYS[2], suspect) == 1
  what = beside and 'beside_a_suspect' or 'worker_died'
  local kills = redis.call('HINCRBY', KEYS[3], 'kills', beside and 0 or 1)
  if not beside and kills >= tonumber(ARGV[8]) then
    q, name = {queue = KEYS[12], ledger = KEYS[13]}, 'quarantine'
  end
  if not beside and kills >= tonumber(ARGV[4]) then
    remember(KEYS[3], what, v[6] or '-', ARGV[2])
    dead_letter(KEYS[10], ARGV[1], KEYS[3], KEYS[4], 'too_many_attempts')
    finish(k, ARGV[1], 'failed', 'too_many_attempts', ARGV[6], ARGV[5])
    return 'ENDED'
  end
end
remember(KEYS[3], what, v[6] or '-', ARGV[2])
local entry = enqueue(q, ARGV[1], v[7] or '', v[3] or 0, v[8] or 0, true)
redis.call('HSET', KEYS[3], 'state', 'queued', 'queue', name, 'entry', entry)
redis.call('HDEL', KEYS[3], 'owner', 'attempt')
if tonumber(v[5]) > 0 then redis.call('ZADD', KEYS[8], v[5], ARGV[1]) end
return 'OK'
