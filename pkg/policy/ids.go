package policy

import (
	"hash/fnv"
	"strconv"
)

// ruleKey names a rule on a node.
type ruleKey struct {
	policy    string // namespace/name
	direction Direction
	index     int
	variant   string // the named ports' numbers; empty for what is not about names
}

// String tells keys apart: neither a policy's name nor a direction has a space.
func (k ruleKey) String() string {
	return k.policy + " " + string(k.direction) + " " + strconv.Itoa(k.index) + " " + k.variant
}

// hashKey is where a key wants to be. Conjunction ids outlive the agent in the switch, so this never changes.
func hashKey(key string) uint32 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(key)) // a hash takes every write
	sum := h.Sum64()
	return uint32(sum ^ sum>>32)
}

// ids gives every key a number from 1 that depends on the set of keys alone, and not on the order in which they came: a key has
// the number that its hash says unless a key before it in order has that; then it takes the next (an ordered hash table with
// linear probing, which looks the same in whatever order it was filled).
type ids struct {
	hash  func(string) uint32
	byID  map[uint32]string
	byKey map[string]uint32
}

func newIDs(hash func(string) uint32) *ids {
	return &ids{hash: hash, byID: map[uint32]string{}, byKey: map[string]uint32{}}
}

// next is the number after id. 0 is none.
func next(id uint32) uint32 {
	if id == ^uint32(0) {
		return 1
	}
	return id + 1
}

// first is the number that a key has when nobody is in its way.
func (t *ids) first(key string) uint32 {
	if id := t.hash(key); id != 0 {
		return id
	}
	return 1
}

// add gives a key a number; moved is told of every key whose number is new or another now.
func (t *ids) add(key string, moved func(key string)) {
	if _, ok := t.byKey[key]; ok {
		return
	}
	for id := t.first(key); ; id = next(id) {
		there, taken := t.byID[id]
		if taken && there < key {
			continue
		}
		t.byID[id], t.byKey[key] = key, id
		moved(key)
		if !taken {
			return
		}
		key = there // it gives way and looks on from here
	}
}

// remove takes a key's number away. Those behind it, up to the next free number, may have been pushed on by it: they are
// placed anew.
func (t *ids) remove(key string, moved func(key string)) {
	id, ok := t.byKey[key]
	if !ok {
		return
	}
	t.free(key, id)
	behind := map[string]uint32{}
	for id = next(id); ; id = next(id) {
		there, taken := t.byID[id]
		if !taken {
			break
		}
		t.free(there, id)
		behind[there] = id
	}
	for there := range behind {
		t.add(there, func(string) {})
	}
	for there, before := range behind {
		if t.byKey[there] != before {
			moved(there)
		}
	}
}

func (t *ids) free(key string, id uint32) {
	delete(t.byID, id)
	delete(t.byKey, key)
}
