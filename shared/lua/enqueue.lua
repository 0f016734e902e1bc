-- Included by scripts that put a request on a queue. The group starts at 0, so that nothing is skipped after a flush.
local function enqueue(queue, rid, cost)
  if redis.call('EXISTS', queue) == 0 then redis.call('XGROUP', 'CREATE', queue, 'g', '0', 'MKSTREAM') end
  return redis.call('XADD', queue, '*', 'rid', rid, 'cost', cost)
end
