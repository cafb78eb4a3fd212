package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/weft-cni/weft/internal/testing/testenv"
)

// TestNodeHealth: what load balancers hear that ask for the node, as from kube-proxy.
func TestNodeHealth(t *testing.T) {
	now := time.Date(2026, 11, 29, 5, 0, 0, 0, time.UTC)
	var serving bool
	h := &nodeHealth{serving: func() bool { return serving }, now: func() time.Time { return now }}
	for _, tt := range []struct {
		serving, draining bool
		healthz, livez    int
	}{
		{true, false, http.StatusOK, http.StatusOK},
		{true, true, http.StatusServiceUnavailable, http.StatusOK},
		{false, false, http.StatusServiceUnavailable, http.StatusServiceUnavailable},
		{false, true, http.StatusServiceUnavailable, http.StatusServiceUnavailable},
	} {
		serving = tt.serving
		h.setDraining(tt.draining)
		for path, want := range map[string]int{"/healthz": tt.healthz, "/livez": tt.livez} {
			r := httptest.NewRecorder()
			h.handler().ServeHTTP(r, httptest.NewRequest(http.MethodGet, path, http.NoBody))
			var body map[string]any
			if err := json.Unmarshal(r.Body.Bytes(), &body); err != nil {
				t.Fatalf("%s: %v: %s", path, err, r.Body)
			}
			eligible, about := body["nodeEligible"]
			if r.Code != want || body["currentTime"] != "2026-11-29T05:00:00Z" ||
				body["lastUpdated"] != "2026-11-29T05:00:00Z" || body["healthy"] != tt.serving ||
				about != (path == "/healthz") || about && eligible == tt.draining ||
				r.Header().Get("Content-Type") != "application/json" {
				t.Errorf("serving %t, draining %t: %s answers %d %s, want %d", tt.serving, tt.draining, path, r.Code, r.Body, want)
			}
		}
	}
}

// TestNodeHealthPortTaken: a port in use is a problem that the agent survives. The setting may be empty.
func TestNodeHealthPortTaken(t *testing.T) {
	other, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := netip.MustParseAddrPort(other.Addr().String())
	a := &Agent{log: slog.New(slog.DiscardHandler), problems: map[string]string{}}
	a.nodeHealth.serving, a.nodeHealth.now = func() bool { return true }, time.Now
	a.serveNodeHealth(t.Context(), netip.AddrPort{}) // returns
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); a.serveNodeHealth(ctx, addr) }()
	problem := func() string {
		a.mu.Lock()
		defer a.mu.Unlock()
		return a.problems["node health check"]
	}
	testenv.Until(t, "the port in use is a problem", func() bool { return problem() != "" })
	if got := problem(); !strings.Contains(got, "serve load balancers on nodeHealthAddr "+addr.String()) ||
		!strings.Contains(got, "address already in use") {
		t.Errorf("problem %q", got)
	}
	other.Close()
	var status string
	testenv.Until(t, "the free port answers", func() bool {
		r, err := http.Get(fmt.Sprintf("http://%s/healthz", addr))
		if err != nil {
			return false
		}
		r.Body.Close()
		status = r.Status
		return true
	})
	if status != "200 OK" || problem() != "" {
		t.Errorf("when the port is free: %q, problem %q", status, problem())
	}
	cancel()
	<-done
}
