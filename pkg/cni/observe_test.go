package cni

import (
	"fmt"
	"slices"
	"sync"
	"testing"

	"github.com/weft-cni/weft/pkg/model"
)

// TestResultsAreReported: each response is told of with its code, 0 for success.
func TestResultsAreReported(t *testing.T) {
	ready := Settings{PodCIDRs: cidrs("10.0.0.0/24")}
	set := ready
	s, _ := served(t, newLimits(4, 4, 4), func() Settings { return set })
	var mu sync.Mutex
	var got []string
	s.cfg.Result = func(command string, code uint) {
		mu.Lock()
		defer mu.Unlock()
		got = append(got, fmt.Sprint(command, " ", code))
	}
	_ = call(s, "STATUS")
	set.NotReady = "because"
	_ = call(s, "STATUS")
	_ = call(s, "ADD")
	mu.Lock()
	defer mu.Unlock()
	if want := []string{"STATUS 0", "STATUS 50", "ADD 7"}; !slices.Equal(got, want) {
		t.Errorf("told of %q, want %q", got, want)
	}
}

// TestRanges: what is used of the node's ranges, and how many addresses pods can have there.
func TestRanges(t *testing.T) {
	set := Settings{PodCIDRs: cidrs("10.0.0.0/29", "2001:db8::/64")}
	s := NewServer(Config{Settings: func() Settings { return set }})
	for i := range 5 {
		key := model.AttachmentKey{ContainerID: fmt.Sprint("c", i), IfName: "eth0"}
		if _, err := s.allocations.reserve(key, model.PodRef{Namespace: "ns", Name: fmt.Sprint("p", i)}, set.PodCIDRs,
			model.MAC{}); err != nil {
			t.Fatal(err)
		}
	}
	want := []Range{{set.PodCIDRs[0], 5, 5}, {set.PodCIDRs[1], 5, 1<<64 - 2}}
	if got := s.Ranges(); !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if full, ok := s.allocations.exhausted(set.PodCIDRs); !ok || full != set.PodCIDRs[0] {
		t.Errorf("exhausted: %v %v", full, ok)
	}
}
