package policy

import (
	"hash/fnv"
	"strconv"

	"github.com/weft-cni/weft/pkg/model"
)

// ruleKey identifies a rule on a node.
type ruleKey struct {
	policy    model.PolicyID
	direction Direction
	index     int
	variant   string // the named ports' numbers; empty without named ports
}

// String is unique: neither a policy's name nor a direction contains a space.
func (k ruleKey) String() string {
	return k.policy.String() + " " + string(k.direction) + " " + strconv.Itoa(k.index) + " " + k.variant
}

// hashKey is the preferred id of a key. Conjunction ids survive an agent restart in the switch, so this function never
// changes.
func hashKey(key string) uint32 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(key)) // a hash never fails
	sum := h.Sum64()
	return uint32(sum ^ sum>>32)
}

// ids assigns each key an id from 1 that depends only on the set of keys, never on the order of changes: an ordered
// hash table with linear probing. A key has the id of its hash unless a smaller key has it; then it takes the next id.
type ids struct {
	hash  func(string) uint32
	byID  map[uint32]string
	byKey map[string]uint32
}

func newIDs(hash func(string) uint32) *ids {
	return &ids{hash: hash, byID: map[uint32]string{}, byKey: map[string]uint32{}}
}

// next is the id after id. 0 is not an id.
func next(id uint32) uint32 {
	if id == ^uint32(0) {
		return 1
	}
	return id + 1
}

// home is the key's preferred id.
func (t *ids) home(key string) uint32 {
	if id := t.hash(key); id != 0 {
		return id
	}
	return 1
}

// add assigns an id to a key; it calls moved for every key with a new or changed id. Idempotent.
func (t *ids) add(key string, moved func(key string)) {
	if _, ok := t.byKey[key]; ok {
		return
	}
	for id := t.home(key); ; id = next(id) {
		there, taken := t.byID[id]
		if taken && there < key {
			continue
		}
		t.byID[id], t.byKey[key] = key, id
		moved(key)
		if !taken {
			return
		}
		key = there // the larger key moves on from here
	}
}

// remove frees a key's id. Keys between it and the next free id may have been displaced by it, so their ids are
// assigned again; it calls moved for those that change.
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
