package main

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/weft-cni/weft/internal/cli"
)

// TestHealth: ok, or the agent's reason as the error of the command; without an agent both checks fail.
func TestHealth(t *testing.T) {
	live := serve(t, map[string]any{"/v1/live": true})
	if out, err := weftctl(live, "health", "live"); err != nil || out != "ok\n" {
		t.Errorf("live: %q, %v", out, err)
	}
	if out, err := weftctl(live, "health", "ready"); err == nil || !strings.HasPrefix(err.Error(), "the agent says: ") ||
		out != "" {
		t.Errorf("not ready: %q, %v", out, err)
	} else {
		wantCode(t, err, cli.Problem)
	}
	for _, args := range [][]string{{"health"}, {"health", "alive"}, {"health", "live", "ready"}} {
		if _, err := weftctl(live, args...); err == nil {
			t.Errorf("%v is accepted", args)
		}
	}
	if _, err := weftctl(filepath.Join(t.TempDir(), "none.sock"), "health", "live"); err == nil ||
		!strings.Contains(err.Error(), "weft-agent has not started") {
		t.Errorf("without an agent: %v", err)
	}
}
