-- Included by scripts that give a request up, before they end it: the owner and the body are still there.
-- remember: one line of the request's history: 'Unix ms, what happened, worker id, attempt id,
-- Unix ms of its start'.
-- dead_letter: keeps the request with its facts, its history and its body for people to look at.
local function remember(rec, what, wid, attempt)
  local v = redis.call('HMGET', rec, 'history', 'started_at_ms')
  local line = table.concat({now_ms(), what, wid, attempt, v[2] or 0}, ' ')
  redis.call('HSET', rec, 'history', (v[1] or '') .. line .. '\n')
end

local function dead_letter(dlq, rid, rec, body, reason)
  local facts = {'lane', 'tenant', 'cost', 'fingerprint', 'claims', 'kills', 'queued_at_ms', 'history'}
  local values = redis.call('HMGET', rec, unpack(facts))
  local letter = {'rid', rid, 'reason', reason, 'body', redis.call('GET', body) or ''}
  for i = 1, #facts do
    letter[#letter + 1] = facts[i]
    letter[#letter + 1] = values[i] or ''
  end
  redis.call('XADD', dlq, 'MAXLEN', '~', '10000', '*', unpack(letter))
end
