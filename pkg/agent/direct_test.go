package agent

import (
	"testing"
	"time"
)

// TestReceiveGrace: packets without a tunnel are accepted for ten seconds after neither the setting nor the Node object
// asks for them; never on a node that has not asked for them.
func TestReceiveGrace(t *testing.T) {
	begin := time.Unix(1_800_000_000, 0)
	var r reception
	for _, tc := range []struct {
		at                time.Duration
		wanted, published bool
		accept            bool
		ends              time.Duration
	}{
		{0, false, false, false, 0},
		{time.Minute, true, false, true, 0},
		{2 * time.Minute, true, true, true, 0},
		{3 * time.Minute, false, true, true, 0}, // the patch is under way
		{3*time.Minute + time.Second, false, false, true, 9 * time.Second},
		{3*time.Minute + 9*time.Second, false, false, true, time.Second},
		{3*time.Minute + 10*time.Second, false, false, false, 0},
		{4 * time.Minute, false, false, false, 0},
		{5 * time.Minute, true, false, true, 0},
		{5*time.Minute + 3*time.Second, false, false, true, 7 * time.Second},
		{5*time.Minute + 4*time.Second, true, false, true, 0},
		{5*time.Minute + 13*time.Second, false, false, true, time.Second},
		{5*time.Minute + 15*time.Second, false, false, false, 0},
	} {
		accept, ends := r.grace(tc.wanted, tc.published, begin.Add(tc.at))
		if accept != tc.accept || ends != tc.ends {
			t.Errorf("after %s, wanted %v, published %v: %v, ends after %s; want %v, %s", tc.at, tc.wanted, tc.published, accept,
				ends, tc.accept, tc.ends)
		}
	}
}
