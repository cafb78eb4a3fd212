package agent

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"sync"
	"time"
)

// nodeHealth answers load balancers that ask whether a node can take traffic for Services, as kube-proxy does at port
// 10256 (KEP-3458, KEP-3836). Its methods may be called from several goroutines.
type nodeHealth struct {
	// serving says whether this node can serve Services; it is called for each request.
	serving func() bool
	now     func() time.Time

	mu       sync.Mutex
	draining bool
	healthy  time.Time // when serving last said so
}

// setDraining takes note of whether the node is about to be deleted.
func (h *nodeHealth) setDraining(draining bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.draining = draining
}

// nodeHealthAnswer is kube-proxy's.
type nodeHealthAnswer struct {
	LastUpdated  time.Time `json:"lastUpdated"`
	CurrentTime  time.Time `json:"currentTime"`
	NodeEligible *bool     `json:"nodeEligible,omitempty"`
	Healthy      bool      `json:"healthy"`
}

// handler serves /healthz, which tells load balancers to send no new connections to a node that goes, and /livez, which
// does not look at that: the node still serves those that it has.
func (h *nodeHealth) handler() http.Handler {
	answer := func(w http.ResponseWriter, withNode bool) {
		serving := h.serving()
		h.mu.Lock()
		a := nodeHealthAnswer{CurrentTime: h.now().UTC(), Healthy: serving}
		if serving {
			h.healthy = a.CurrentTime
		}
		a.LastUpdated = h.healthy
		if withNode {
			eligible := !h.draining
			a.NodeEligible = &eligible
			serving = serving && eligible
		}
		h.mu.Unlock()
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		if !serving {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
		_ = json.NewEncoder(w).Encode(a) // the reader may be gone
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/healthz", func(w http.ResponseWriter, _ *http.Request) { answer(w, true) })
	mux.HandleFunc("/livez", func(w http.ResponseWriter, _ *http.Request) { answer(w, false) })
	return mux
}

// serveNodeHealth serves load balancers until the context ends.
func (a *Agent) serveNodeHealth(ctx context.Context, addr netip.AddrPort) {
	if !addr.IsValid() {
		return
	}
	a.keepServing(ctx, "node health check", listenAddr(addr), a.nodeHealth.handler(), func(err error) error {
		return fmt.Errorf("serve load balancers on nodeHealthAddr %s: %w; "+
			"stop the other program, such as kube-proxy, or change the setting", addr, err)
	})
}
