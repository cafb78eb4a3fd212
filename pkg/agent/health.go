package agent

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// serveHealth answers people, monitoring and Prometheus until the context ends. While another process has the port, the
// agent works without it. The kubelet's probes ask at the operator's socket, which is root's alone: a process that
// takes a port of the node must not decide whether its agent is restarted.
func (a *Agent) serveHealth(ctx context.Context) {
	addr := a.cfg.HealthAddr.String()
	a.keepServing(ctx, "health address", addr, a.healthHandler(), func(err error) error {
		return fmt.Errorf("serve health and metrics on healthAddr %s: %w; stop the other program or change the setting: "+
			"meanwhile the other program answers there (the DaemonSet's probes do not need the address)", addr, err)
	})
}

// serveMetrics answers Prometheus at metricsAddr, if that is set, until the context ends.
func (a *Agent) serveMetrics(ctx context.Context) {
	addr := a.config().MetricsAddr
	if !addr.IsValid() {
		return
	}
	a.keepServing(ctx, "metrics address", listenAddr(addr), a.metricsHandler(), func(err error) error {
		return fmt.Errorf("serve metrics on metricsAddr %s: %w; stop the other program or change the setting", addr, err)
	})
}

// listenAddr is the address to listen at: an unspecified one means both families, or the one that the node has.
func listenAddr(addr netip.AddrPort) string {
	if addr.Addr().IsUnspecified() {
		return fmt.Sprint(":", addr.Port())
	}
	return addr.String()
}

// metricsHandler serves /metrics alone.
func (a *Agent) metricsHandler() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(a.metrics(), promhttp.HandlerOpts{}))
	return mux
}

// healthHandler serves /healthz and /livez, which fail when only a new process or container can help, /readyz, which
// fails while the node cannot attach pods, and /metrics.
func (a *Agent) healthHandler() http.Handler {
	mux := http.NewServeMux()
	check := func(path string, failure func() string) {
		mux.HandleFunc("GET "+path, func(w http.ResponseWriter, _ *http.Request) {
			if why := failure(); why != "" {
				http.Error(w, why, http.StatusServiceUnavailable)
				return
			}
			fmt.Fprintln(w, "ok")
		})
	}
	check("/healthz", a.dead)
	check("/livez", a.dead)
	mux.HandleFunc("GET /readyz", a.serveReadiness)
	mux.Handle("GET /metrics", a.metricsHandler())
	return mux
}

// serveReadiness answers /readyz: ok, or why the node cannot attach pods, and then every problem in a line.
func (a *Agent) serveReadiness(w http.ResponseWriter, _ *http.Request) {
	why := a.unready()
	a.mu.Lock()
	problems := a.problemsLocked()
	a.mu.Unlock()
	status, text := readiness(why, problems)
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(status)
	fmt.Fprintln(w, text)
}

// readiness is the answer of /readyz for a node that cannot attach pods for a reason, or "" for none.
func readiness(why string, problems []string) (status int, text string) {
	status = http.StatusOK
	if why != "" {
		status = http.StatusServiceUnavailable
	}
	return status, strings.Join(append([]string{cmp.Or(why, "ok")}, problems...), "\n")
}

// unready says why the node cannot attach pods, or "".
func (a *Agent) unready() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return cmp.Or(a.notReadyLocked(), a.degradedLocked())
}

// dead says why this process is of no more use, or "".
func (a *Agent) dead() string {
	a.mu.Lock()
	loop := a.loop
	a.mu.Unlock()
	if loop != nil {
		if err := loop.Stuck(); err != nil {
			return err.Error()
		}
	}
	if err := deleted(a.ovsRunDir()); err != nil {
		return err.Error()
	}
	return ""
}

// deleted fails when a directory was deleted while it is mounted here. Its path then leads to the deleted directory
// for the life of the mount, which is the container's. A missing directory is not a failure: it may come again.
func deleted(dir string) error {
	info, err := os.Stat(dir)
	if err != nil {
		return nil //nolint:nilerr // the connection to Open vSwitch names it
	}
	if stat, ok := info.Sys().(*syscall.Stat_t); ok && stat.Nlink == 0 {
		return fmt.Errorf("the Open vSwitch directory %s was deleted, and this container's mount does not follow a new one; "+
			"the container must be restarted", dir)
	}
	return nil
}

// ovsRunDir is where this process finds the directory of Open vSwitch's sockets. The node's /run may be mounted
// elsewhere: as a whole, so that a directory that Open vSwitch's units delete and make again is found again.
func (a *Agent) ovsRunDir() string {
	dir := a.config().OVSRunDir
	if a.opt.HostRun == "" {
		return dir
	}
	for _, run := range []string{"/run/", "/var/run/"} {
		if below, ok := strings.CutPrefix(dir, run); ok {
			return filepath.Join(a.opt.HostRun, below)
		}
	}
	return dir
}

// keepServing serves on a TCP address until the context ends. While it cannot, as when another process has the port,
// it tries again and the part has the problem that describe makes of the error.
func (a *Agent) keepServing(
	ctx context.Context, part, addr string, handler http.Handler, describe func(error) error,
) {
	var lc net.ListenConfig
	// Ends with the context alone: a listener that fails is opened again.
	_ = a.retry(ctx, part, func(ctx context.Context) error {
		listener, err := lc.Listen(ctx, "tcp", addr)
		if err != nil {
			return describe(err)
		}
		a.setProblem(part, nil)
		if err := serve(ctx, listener, handler); err != nil {
			return describe(err)
		}
		if ctx.Err() == nil {
			return describe(errors.New("the listener was closed"))
		}
		return nil
	})
}
