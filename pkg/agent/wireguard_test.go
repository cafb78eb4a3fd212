package agent

import (
	"testing"
	"time"

	"github.com/weft-cni/weft/pkg/model"
)

// TestLookout: while the same handshakes are missing, the pauses between looks grow to a minute. They are short
// again when another one is missing, and after none was.
func TestLookout(t *testing.T) {
	begin := time.Unix(1_800_000_000, 0)
	one, other := model.WireGuardKey{1}, model.WireGuardKey{2}
	var l lookout
	for _, tc := range []struct {
		at      time.Duration
		missing []model.WireGuardKey
		want    time.Duration
	}{
		{0, nil, syncEvery},
		{time.Hour, []model.WireGuardKey{one}, handshakePause},
		{time.Hour + 4*time.Second, []model.WireGuardKey{one}, handshakePause},
		{time.Hour + 8*time.Second, []model.WireGuardKey{one}, time.Second},
		{time.Hour + 80*time.Second, []model.WireGuardKey{one}, 10 * time.Second},
		{2 * time.Hour, []model.WireGuardKey{one}, syncEvery},
		{2 * time.Hour, []model.WireGuardKey{one, other}, handshakePause},
		{2*time.Hour + 16*time.Second, []model.WireGuardKey{one, other}, 2 * time.Second},
		{2*time.Hour + 17*time.Second, []model.WireGuardKey{other}, handshakePause},
		{3 * time.Hour, nil, syncEvery},
		{3 * time.Hour, []model.WireGuardKey{other}, handshakePause},
	} {
		if got := l.pause(tc.missing, begin.Add(tc.at)); got != tc.want {
			t.Errorf("after %s with %d missing: a pause of %s, want %s", tc.at, len(tc.missing), got, tc.want)
		}
	}
}
