package host

import (
	"cmp"
	"errors"
	"maps"
	"slices"
	"testing"

	gocmp "github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

// fakeKernel has objects of Weft's and of others. Writes of the keys in broken fail.
type fakeKernel struct {
	ours, foreign map[int]string
	broken        map[int]bool
	writes        int
}

var errBroken = errors.New("broken")

func (k *fakeKernel) add(e entry[int, string], replace bool) error {
	k.writes++
	_, exists := k.ours[e.key]
	switch {
	case k.broken[e.key]:
		return errBroken
	case k.foreign[e.key] != "", exists && !replace:
		return errors.New("exists")
	}
	k.ours[e.key] = e.value
	return nil
}

func (k *fakeKernel) remove(e entry[int, string]) error {
	k.writes++
	if k.broken[e.key] {
		return errBroken
	}
	delete(k.ours, e.key) // another program may have been faster
	return nil
}

// TestTracker: any sequence of desires, failing writes, changes by other programs and dumps ends with the desired
// objects in the kernel, except where a foreign one stays; and no write is one too many.
func TestTracker(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		tr := newTracker[int, string](cmp.Compare[int])
		kernel := &fakeKernel{ours: map[int]string{}, foreign: map[int]string{}, broken: map[int]bool{}}
		keys, values := rapid.IntRange(0, 9), rapid.SampledFrom([]string{"a", "b"})
		var desired []entry[int, string]
		foreign := map[int]string{}
		blind := true // the kernel may differ from the tracker's knowledge
		sync := func(compare bool) {
			if compare || !tr.known {
				tr.learn(maps.Clone(kernel.ours))
				blind = false
			}
			tr.add(kernel.add)
			if tr.prune(kernel.remove) != nil {
				tr.forget()
			}
		}
		t.Repeat(map[string]func(*rapid.T){
			"desire": func(t *rapid.T) {
				desired = rapid.SliceOfNDistinct(rapid.Custom(func(t *rapid.T) entry[int, string] {
					return entry[int, string]{values.Draw(t, "value"), keys.Draw(t, "key")}
				}), 0, 8, func(e entry[int, string]) int { return e.key }).Draw(t, "desired")
				tr.desire(desired)
			},
			"one more": func(t *rapid.T) {
				e := entry[int, string]{values.Draw(t, "value"), keys.Draw(t, "key")}
				if !slices.ContainsFunc(desired, func(d entry[int, string]) bool { return d.key == e.key }) {
					desired = slices.Insert(slices.Clone(desired), rapid.IntRange(0, len(desired)).Draw(t, "at"), e)
					tr.desire(desired)
				}
			},
			"break":  func(t *rapid.T) { kernel.broken[keys.Draw(t, "key")] = true },
			"mend":   func(*rapid.T) { clear(kernel.broken) },
			"forget": func(*rapid.T) { tr.forget() },
			"another program deletes ours": func(t *rapid.T) {
				delete(kernel.ours, keys.Draw(t, "key"))
				blind = true
			},
			"another program writes ours": func(t *rapid.T) {
				k := keys.Draw(t, "key")
				if kernel.foreign[k] == "" {
					kernel.ours[k] = values.Draw(t, "value")
					blind = true
				}
			},
			"a foreign object": func(t *rapid.T) {
				k := keys.Draw(t, "key")
				if _, exists := kernel.ours[k]; !exists {
					kernel.foreign[k] = "theirs"
					foreign[k] = "theirs"
				}
			},
			"sync":    func(*rapid.T) { sync(false) },
			"compare": func(*rapid.T) { sync(true) },
			"": func(t *rapid.T) {
				if diff := gocmp.Diff(foreign, kernel.foreign); diff != "" {
					t.Fatalf("foreign objects changed (-want +got):\n%s", diff)
				}
				for _, e := range desired {
					if !tr.wants(e.key) {
						t.Fatalf("%v is desired", e)
					}
				}
				if blind || !tr.known {
					return
				}
				for k := range 10 {
					for _, v := range []string{"a", "b"} {
						if got, want := tr.has(k, v), kernel.ours[k] == v; got != want {
							t.Fatalf("has(%d, %s) = %t, the kernel has %q", k, v, got, kernel.ours[k])
						}
					}
				}
			},
		})

		clear(kernel.broken)
		sync(true)
		want := map[int]string{}
		var failed, got []entry[int, string]
		for _, e := range desired {
			if kernel.foreign[e.key] == "" {
				want[e.key] = e.value
			} else {
				failed = append(failed, e)
			}
		}
		if diff := gocmp.Diff(want, kernel.ours); diff != "" {
			t.Fatalf("the kernel's objects (-want +got):\n%s", diff)
		}
		for e := range tr.failures() {
			got = append(got, e)
		}
		if !slices.Equal(failed, got) || tr.inSync() != (len(failed) == 0) {
			t.Fatalf("failures %v, want %v; in sync: %t", got, failed, tr.inSync())
		}
		kernel.writes = 0
		sync(false)
		tr.desire(slices.Clone(desired))
		sync(false)
		if kernel.writes > 0 {
			t.Fatalf("%d writes without a change", kernel.writes)
		}
		sync(true)
		if kernel.writes != len(failed) {
			t.Fatalf("%d writes after a dump, want one for each of %v", kernel.writes, failed)
		}
	})
}

// TestTrackerOrder: objects are written in the order of desire, and removed in the order of their keys.
func TestTrackerOrder(t *testing.T) {
	tr := newTracker[int, string](cmp.Compare[int])
	list := func(keys ...int) (l []entry[int, string]) {
		for _, k := range keys {
			l = append(l, entry[int, string]{"a", k})
		}
		return l
	}
	tr.desire(list(3, 1, 2))
	tr.learn(map[int]string{9: "a", 7: "a", 1: "b"})
	var got []int
	tr.add(func(e entry[int, string], replace bool) error {
		if replace != (e.key == 1) {
			t.Errorf("%d: replace is %t", e.key, replace)
		}
		if !tr.has(e.key, e.value) {
			t.Errorf("%d: an event of the write would be foreign", e.key)
		}
		got = append(got, e.key)
		return nil
	})
	if err := tr.prune(func(e entry[int, string]) error {
		if tr.has(e.key, e.value) {
			t.Errorf("%d: an event of the removal would be foreign", e.key)
		}
		got = append(got, e.key)
		return nil
	}); err != nil {
		t.Error(err)
	}
	if want := []int{3, 1, 2, 7, 9}; !slices.Equal(got, want) {
		t.Errorf("writes %v, want %v", got, want)
	}
	tr.desire(list(3, 4))
	if missing, stale := tr.missing(), tr.stale(); !slices.Equal(missing, list(4)) || !slices.Equal(stale, list(1, 2)) {
		t.Errorf("missing %v, stale %v", missing, stale)
	}
	tr.written()
	if !tr.inSync() || tr.has(1, "a") || !tr.has(4, "a") {
		t.Error("what was written is not known")
	}
	tr.forget()
	if tr.inSync() || tr.has(4, "a") {
		t.Error("what was forgotten is known")
	}
}
