-- batch_read: a batch as of one moment: its record, the bitmap of committed rows, and its parts. Changes nothing.
-- KEYS  1 batch  2 bitmap of committed rows  3 list of parts      ARGV  none
-- Returns  {record flat, bitmap, entries of the parts}; the record is empty where there is no such batch
return {redis.call('HGETALL', KEYS[1]), redis.call('GET', KEYS[2]) or '', redis.call('LRANGE', KEYS[3], 0, -1)}
