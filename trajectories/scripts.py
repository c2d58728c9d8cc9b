"""The store's state and the Lua scripts that change it.

Keys of a run (one hash tag, so they share a slot of a Redis cluster):

    entries     stream: one small entry a group (g group id, n bytes, r rows, s summary); consumer group `learner`
    payload:G   string: the Arrow record of group G, present from publication to settlement
    arriving:U  string: a record inside the exchange that publishes it, where it is renamed or deleted
    groups      hash: group id -> entry id
    published   hash: entry id -> "group TAB rows TAB bytes TAB epoch"
    settled     hash: entry id -> lines "token TAB outcome"; a second line is a double settlement
    bytes       sum of the payloads that are present
    epoch       the fencing token

Why the payload is no field of the stream entry: a script (needed, because publication checks before it writes) would
copy megabytes into Lua and out again, while SET keeps the received buffer. MULTI makes the two one. The record arrives
under a name of its own, so that no publication can put another's record in the place of one that is lost.

A script runs atomically and writes either all or nothing, also into the append-only file. `allow-oom` lets the ledger
be written when the server is at its memory limit: settlements free memory, and a payload already set must not lack
its entry. Publication is still refused then, because SET is.
"""

from __future__ import annotations

GROUP = "learner"  # name of the consumer group


class Keys:
    """Names of a run's keys."""

    def __init__(self, run_id: str) -> None:
        prefix = f"restorl:{{{run_id}}}:"
        self.entries, self.groups, self.published, self.settled, self.bytes, self.epoch = (
            prefix + name for name in ("entries", "groups", "published", "settled", "bytes", "epoch")
        )
        self.payload_prefix, self.arriving_prefix = prefix + "payload:", prefix + "arriving:"

    def payload(self, group_id: str) -> str:
        return self.payload_prefix + group_id

    @property
    def state(self) -> list[str]:
        """In the order in which all scripts take them."""
        return [self.entries, self.groups, self.published, self.settled, self.bytes, self.epoch]


_HEADER = """#!lua flags=allow-oom
local entries, groups, published, settled, bytes, epoch =
  KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5], KEYS[6]
local function number(key) return tonumber(redis.call('GET', key) or '0') end
"""

_FENCE = """
local function stale(given)
  local current = number(epoch)
  if given ~= '' and tonumber(given) ~= current then return {'epoch', tostring(current)} end
end
"""

# ARGV: group, payload key, bytes, epoch, max entries, max bytes, [rows, arriving key, summary]
_CHECK = """
local group, payload, size = ARGV[1], ARGV[2], tonumber(ARGV[3])
local function verdict()
  local refused = stale(ARGV[4])
  if refused then return refused end
  local known = redis.call('HGET', groups, group)
  if known then return {'known', known} end
  local count, held = redis.call('XLEN', entries), number(bytes)
  if count >= tonumber(ARGV[5]) or held + size > tonumber(ARGV[6]) then
    return {'full', tostring(count), tostring(held)}
  end
end
"""

ADMIT = _HEADER + _FENCE + _CHECK + "return verdict() or {'room'}"
"""May this group be published now? Asked before megabytes are sent."""

COMMIT = (
    _HEADER
    + _FENCE
    + _CHECK
    + """
local refused = verdict()
if refused then
  redis.call('UNLINK', ARGV[8])
  return refused
end
redis.call('RENAME', ARGV[8], payload)
local id = redis.call('XADD', entries, '*', 'g', group, 'n', ARGV[3], 'r', ARGV[7], 's', ARGV[9])
redis.call('HSET', groups, group, id)
redis.call('HSET', published, id, table.concat({group, ARGV[7], ARGV[3], ARGV[4]}, '\\t'))
redis.call('INCRBY', bytes, ARGV[3])
return {'published', id}
"""
)
"""Second half of a publication, in one MULTI with `SET arriving`."""

READ = (
    _HEADER
    + _FENCE
    + """
-- ARGV: consumer group, consumer, epoch or '', '>' or an id, count
local refused = stale(ARGV[3])
if refused then return refused end
local answer = redis.call('XREADGROUP', 'GROUP', ARGV[1], ARGV[2], 'COUNT', ARGV[5], 'STREAMS', entries, ARGV[4])
if answer and #answer[1][2] > 0 then return {'ok', answer[1][2], ''} end
for _, info in ipairs(redis.call('XINFO', 'GROUPS', entries)) do
  local group = {}
  for i = 1, #info, 2 do group[info[i]] = info[i + 1] end
  if group['name'] == ARGV[1] then return {'ok', {}, group['last-delivered-id']} end
end
return {'ok', {}, '0'}
"""
)
"""New entries of a consumer ('>'), or those behind an id that it has read before; nothing is read in an old epoch.

Without entries, the answer's last part is the id behind which to wait for new ones.
"""

CLAIM = (
    _HEADER
    + _FENCE
    + """
-- ARGV: consumer group, consumer, epoch or '', first id, most entries looked at, '1' to give the consumer's own too
local refused = stale(ARGV[3])
if refused then return refused end
local page, ids, last = redis.call('XPENDING', entries, ARGV[1], ARGV[4], '+', ARGV[5]), {}, ''
for _, pending in ipairs(page) do
  if pending[2] ~= ARGV[2] or ARGV[6] == '1' then ids[#ids + 1] = pending[1] end
  last = pending[1]
end
if #ids == 0 then return {'ok', {}, last} end
return {'ok', redis.call('XCLAIM', entries, ARGV[1], ARGV[2], 0, unpack(ids)), last}
"""
)
"""A page of what other consumers have read and not settled, made this consumer's; and the last id looked at."""

WAITING = (
    _HEADER
    + _FENCE
    + """
-- ARGV: first id, most entries, epoch or ''
local refused = stale(ARGV[3])
if refused then return refused end
local found, last = {}, ''
for _, entry in ipairs(redis.call('XRANGE', entries, ARGV[1], '+', 'COUNT', ARGV[2])) do
  for i = 1, #entry[2], 2 do
    if entry[2][i] == 'g' then found[#found + 1], found[#found + 2] = entry[2][i + 1], entry[1] end
  end
  last = entry[1]
end
return {'ok', found, last}
"""
)
"""A page of the unsettled entries without their summaries: group id, entry id, ...; and the last id looked at."""

SETTLE = (
    _HEADER
    + _FENCE
    + """
-- ARGV: consumer group, payload prefix, token, outcome, epoch or '', entry ids
local refused = stale(ARGV[5])
if refused then return refused end
local token, results = ARGV[3], {'ok'}
for i = 6, #ARGV do
  local id = ARGV[i]
  local record, before = redis.call('HGET', published, id), redis.call('HGET', settled, id)
  if before and string.find('\\n' .. before, '\\n' .. token .. '\\t', 1, true) then
    results[#results + 1] = 'repeated'
  else
    local line = token .. '\\t' .. ARGV[4]
    redis.call('HSET', settled, id, before and (before .. '\\n' .. line) or line)
    redis.call('XACK', entries, ARGV[1], id)
    redis.call('XDEL', entries, id)
    if record and not before then
      local group, size = string.match(record, '^([^\\t]*)\\t%d+\\t(%d+)\\t')
      redis.call('UNLINK', ARGV[2] .. group)
      redis.call('DECRBY', bytes, size)
    end
    results[#results + 1] = not record and 'unknown' or before and 'twice' or 'settled'
  end
end
return results
"""
)
"""Acknowledge, delete and note the outcome of entries; the same token a second time changes nothing."""

INSTANT = (
    _HEADER
    + """
-- ARGV: consumer group, payload prefix
local waiting, pending, last = {}, {}, ''
for _, entry in ipairs(redis.call('XRANGE', entries, '-', '+')) do
  local group = ''
  for i = 1, #entry[2], 2 do if entry[2][i] == 'g' then group = entry[2][i + 1] end end
  waiting[#waiting + 1] = {entry[1], redis.call('STRLEN', ARGV[2] .. group)}
end
local owned = redis.pcall('XPENDING', entries, ARGV[1], '-', '+', 1000000000)
if not owned.err then
  for _, entry in ipairs(owned) do pending[#pending + 1] = {entry[1], entry[2]} end
end
local stream = redis.pcall('XINFO', 'STREAM', entries)
if not stream.err then
  for i = 1, #stream, 2 do if stream[i] == 'last-generated-id' then last = stream[i + 1] end end
end
return {waiting, pending, tostring(number(bytes)), tostring(number(epoch)), last,
        redis.call('HLEN', published), redis.call('HLEN', settled)}
"""
)
"""What is unsettled at this instant, and how many groups were published and settled before; see `history.py`."""

RESTORE = (
    _HEADER
    + """
-- ARGV: consumer group, payload prefix, least epoch, least last id; of each entry its id, group, both lines
local function later(a, b)
  local a1, a2 = string.match(a, '^(%d+)-(%d+)$')
  local b1, b2 = string.match(b, '^(%d+)-(%d+)$')
  if a1 ~= b1 then return tonumber(a1) > tonumber(b1) end
  return tonumber(a2) > tonumber(b2)
end
local stream, restored = redis.call('XINFO', 'STREAM', entries), 0
for i = 1, #stream, 2 do
  if stream[i] == 'last-generated-id' and later(ARGV[4], stream[i + 1]) then redis.call('XSETID', entries, ARGV[4]) end
end
if number(epoch) < tonumber(ARGV[3]) then redis.call('SET', epoch, ARGV[3]) end
for i = 5, #ARGV, 4 do
  local id, group, line = ARGV[i], ARGV[i + 1], ARGV[i + 2]
  if redis.call('HEXISTS', settled, id) == 0 then
    if redis.call('HSETNX', published, id, line) == 0 then
      redis.call('XACK', entries, ARGV[1], id)
      redis.call('XDEL', entries, id)
      redis.call('UNLINK', ARGV[2] .. group)
      redis.call('DECRBY', bytes, string.match(line, '^[^\\t]*\\t%d+\\t(%d+)\\t'))
    end
    redis.call('HSETNX', groups, group, id)
    redis.call('HSET', settled, id, ARGV[i + 3])
    restored = restored + 1
  end
end
return {'ok', tostring(restored)}
"""
)
"""Write down again what is known to be settled, in a store that has lost it; ids and epochs go on behind theirs."""
