-- Shared by every script that ends a request (included, never called alone).
--
-- finish(k, rid, state, reason, frame, ttl_ms): the one place where a request becomes terminal. The caller has checked
-- that the record is not terminal yet. k names the keys: rec, log, body, chan, tenants, deadlines, fin.
-- Appends and publishes the terminal frame, writes the record, releases the tenant's place, drops the body and the
-- deadline, and puts one entry into the outbox. Cost: about 10 commands.
--
-- publish(chan, log_len, frame): one live message, msgpack [log length after the frame, frame], so that a reader knows
-- where the frame starts. Returns the number of receivers.
local function publish(chan, log_len, frame)
  return redis.call(PUBLISH, chan, struct.pack('>BBI4', 0x92, 0xce, log_len) .. frame)
end

local function finish(k, rid, state, reason, frame, ttl_ms)
  local tenant = redis.call('HGET', k.rec, 'tenant')
  local log_len = redis.call('APPEND', k.log, frame)
  redis.call('HSET', k.rec, 'state', state, 'reason', reason, 'finished_at_ms', now_ms())
  redis.call('HDEL', k.rec, 'owner', 'attempt')
  redis.call('DEL', k.body)
  redis.call('ZREM', k.deadlines, rid)
  if tenant and redis.call('HINCRBY', k.tenants, tenant, -1) <= 0 then redis.call('HDEL', k.tenants, tenant) end
  redis.call('XADD', k.fin, 'MAXLEN', '~', '100000', '*', 'rid', rid, 'state', state, 'reason', reason)
  redis.call('PEXPIRE', k.rec, ttl_ms)
  redis.call('PEXPIRE', k.log, ttl_ms)
  publish(k.chan, log_len, frame)
end
