package host

import (
	"errors"
	"iter"
	"slices"
	"sync"
)

// tracker compares the desired objects of one kind with those of Weft's that the kernel has. It removes only what it
// has learned or written, and its callers never let it learn foreign objects.
//
// It remembers the kernel's objects, so that between two dumps only differences are written. It stores them as
// differences from the desired ones: the memory of an object in sync costs nothing.
//
// One goroutine writes; has and wants may be called from others.
type tracker[K, V comparable] struct {
	// order sorts the keys of stale objects; nil leaves their order open.
	order func(a, b K) int

	mu      sync.Mutex
	list    []entry[K, V] // the desired objects, in the caller's order
	desired map[K]V
	// known: the kernel's objects have been learned.
	known bool
	// differs are the kernel's values where they differ from the desired ones.
	differs map[K]state[V]
	// failed are the desired objects that could not be written, and the reasons. They are retried after the next change
	// of the desired objects or the next dump.
	failed map[K]error
}

// entry is an object: the kernel has at most one for each key.
type entry[K, V comparable] struct {
	value V
	key   K
}

// keys are the keys of objects.
func keys[K, V comparable](list []entry[K, V]) []K {
	keys := make([]K, len(list))
	for i, e := range list {
		keys[i] = e.key
	}
	return keys
}

// state is the value of a key, if the key exists.
type state[V comparable] struct {
	value  V
	exists bool
}

func newTracker[K, V comparable](order func(a, b K) int) *tracker[K, V] {
	return &tracker[K, V]{order: order, desired: map[K]V{}, differs: map[K]state[V]{}, failed: map[K]error{}}
}

// desire replaces the desired objects. Their keys are unique, and the tracker keeps the list. Beyond one comparison of
// the lists, the cost follows the part that has changed.
func (t *tracker[K, V]) desire(list []entry[K, V]) {
	before, now := t.list, list
	for len(before) > 0 && len(now) > 0 && before[0] == now[0] {
		before, now = before[1:], now[1:]
	}
	for len(before) > 0 && len(now) > 0 && before[len(before)-1] == now[len(now)-1] {
		before, now = before[:len(before)-1], now[:len(now)-1]
	}
	if len(before) == 0 && len(now) == 0 {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, e := range before {
		have := t.have(e.key)
		delete(t.desired, e.key)
		t.note(e.key, have)
	}
	for _, e := range now {
		have := t.have(e.key)
		t.desired[e.key] = e.value
		t.note(e.key, have)
	}
	t.list = list
	clear(t.failed)
}

// learn replaces the tracker's knowledge of the kernel by a dump of Weft's objects.
func (t *tracker[K, V]) learn(have map[K]V) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.known, t.differs = true, map[K]state[V]{}
	for _, e := range t.list {
		if _, exists := have[e.key]; !exists {
			t.differs[e.key] = state[V]{}
		}
	}
	for k, v := range have {
		t.note(k, state[V]{v, true})
	}
	clear(t.failed)
}

// forget makes the knowledge of the kernel unreliable until the next dump.
func (t *tracker[K, V]) forget() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.known = false
}

// inSync: the kernel is known to have what is desired, and nothing else.
func (t *tracker[K, V]) inSync() bool { return t.known && len(t.differs) == 0 }

// missing are the desired objects that the kernel lacks or has with another value, in the order of desire, except
// those that have failed.
func (t *tracker[K, V]) missing() []entry[K, V] {
	if len(t.differs) == len(t.failed) {
		return nil
	}
	var list []entry[K, V]
	for _, e := range t.list {
		if _, differs := t.differs[e.key]; differs && t.failed[e.key] == nil {
			list = append(list, e)
		}
	}
	return list
}

// stale are the kernel's objects whose keys are not desired.
func (t *tracker[K, V]) stale() []entry[K, V] {
	var list []entry[K, V]
	for k, have := range t.differs {
		if _, desired := t.desired[k]; !desired && have.exists {
			list = append(list, entry[K, V]{have.value, k})
		}
	}
	if t.order != nil {
		slices.SortFunc(list, func(a, b entry[K, V]) int { return t.order(a.key, b.key) })
	}
	return list
}

// add writes the missing objects. Of one that cannot be written it keeps the error for failures. The tracker knows of
// an object before it is written, so that has recognizes the kernel's event.
func (t *tracker[K, V]) add(write func(e entry[K, V], replace bool) error) {
	for _, e := range t.missing() {
		old := t.have(e.key)
		t.record(e.key, state[V]{e.value, true})
		if err := write(e, old.exists); err != nil {
			t.record(e.key, old)
			t.failed[e.key] = err
		}
	}
}

// prune removes the stale objects. One that cannot be removed does not keep the others.
func (t *tracker[K, V]) prune(remove func(entry[K, V]) error) error {
	var errs []error
	for _, e := range t.stale() {
		t.record(e.key, state[V]{})
		if err := remove(e); err != nil {
			t.record(e.key, state[V]{e.value, true})
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// sync learns a dump and writes the difference, removals first.
func (t *tracker[K, V]) sync(have map[K]V, remove func(entry[K, V]) error, write func(entry[K, V], bool) error) error {
	t.learn(have)
	removed := t.prune(remove)
	t.add(write)
	errs := []error{removed}
	for _, err := range t.failures() {
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// written records that the kernel has exactly the desired objects.
func (t *tracker[K, V]) written() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.known, t.differs = true, map[K]state[V]{}
	clear(t.failed)
}

// failures are the objects that could not be written, in the order of desire, and the reasons.
func (t *tracker[K, V]) failures() iter.Seq2[entry[K, V], error] {
	return func(yield func(entry[K, V], error) bool) {
		for _, e := range t.list {
			if err := t.failed[e.key]; err != nil && !yield(e, err) {
				return
			}
		}
	}
}

// has reports whether the kernel is known to have the object.
func (t *tracker[K, V]) has(k K, v V) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.known && t.have(k) == state[V]{v, true}
}

// wants reports whether an object with the key is desired.
func (t *tracker[K, V]) wants(k K) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	_, desired := t.desired[k]
	return desired
}

func (t *tracker[K, V]) have(k K) state[V] {
	if have, differs := t.differs[k]; differs {
		return have
	}
	v, exists := t.desired[k]
	return state[V]{v, exists}
}

func (t *tracker[K, V]) record(k K, have state[V]) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.note(k, have)
}

// note records the kernel's value of a key. The caller holds the mutex.
func (t *tracker[K, V]) note(k K, have state[V]) {
	v, desired := t.desired[k]
	if have == (state[V]{v, desired}) {
		delete(t.differs, k)
	} else {
		t.differs[k] = have
	}
}
