package agent

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/pkg/config"
	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/ofswitch"
	"github.com/weft-cni/weft/pkg/openflow"
	"github.com/weft-cni/weft/pkg/programmer"
)

// stuckSwitch never answers a bundle, whatever its context says, until it is released.
type stuckSwitch struct {
	*ofswitch.Fake
	release chan struct{}
}

func (s stuckSwitch) Apply(ctx context.Context, d openflow.Delta) error {
	<-s.release
	return s.Fake.Apply(ctx, d)
}

// healthAgent is an agent with just what its health address asks for.
func healthAgent(sw programmer.Switch) *Agent {
	log := slog.New(slog.DiscardHandler)
	return &Agent{
		log: log, cfg: config.Default(), problems: map[string]string{}, opt: Options{HostRun: "/nowhere"},
		loop: programmer.New(programmer.Options{Node: "n1", Switch: sw, Log: log}),
	}
}

func ask(a *Agent, path string) (status int, text string) {
	answer := httptest.NewRecorder()
	a.healthHandler().ServeHTTP(answer, httptest.NewRequest(http.MethodGet, path, http.NoBody))
	return answer.Code, strings.TrimSpace(answer.Body.String())
}

// TestHealthOfTheLoop: a loop that does not come round for minutes is dead; one that has nothing to do, that waits for
// a switch that is away, or that takes as long as a bundle may take is not.
func TestHealthOfTheLoop(t *testing.T) {
	for _, tc := range []struct {
		name  string
		stuck bool
		down  bool
	}{{"idle", false, false}, {"switch away", false, true}, {"stuck", true, false}} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				fake, release := ofswitch.NewFake(flows.Check), make(chan struct{})
				if tc.down {
					fake.Stop()
				}
				var sw programmer.Switch = fake
				if tc.stuck {
					sw = stuckSwitch{fake, release}
				}
				a := healthAgent(sw)
				ctx, cancel := context.WithCancel(t.Context())
				ended := make(chan struct{})
				go func() { defer close(ended); _ = a.loop.Run(ctx) }()
				for minute := range 20 {
					for _, path := range []string{"/healthz", "/livez"} {
						status, text := ask(a, path)
						switch dead := tc.stuck && minute >= 5; {
						case !dead && (status != http.StatusOK || text != "ok") && (!tc.stuck || minute < 3):
							t.Errorf("minute %d: %s answers %d %q", minute, path, status, text)
						case dead && (status != http.StatusServiceUnavailable || !strings.Contains(text, "has been stuck for")):
							t.Errorf("minute %d: %s answers %d %q, want a loop that is stuck", minute, path, status, text)
						}
					}
					time.Sleep(time.Minute)
				}
				cancel()
				close(release)
				<-ended
				if status, text := ask(a, "/healthz"); status != http.StatusOK {
					t.Errorf("a loop that has ended: %d %q", status, text)
				}
			})
		})
	}
}

// TestHealthOfTheRunDirectory: a directory that was deleted while it is mounted is of no more use; one that is missing
// may come again, and one that was recreated is found by its path.
func TestHealthOfTheRunDirectory(t *testing.T) {
	run := t.TempDir()
	dir := filepath.Join(run, "openvswitch")
	mkdir := func() {
		t.Helper()
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	mkdir()
	// as a mount of the directory itself does, it leads to this directory whatever the path leads to
	mounted, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer mounted.Close()
	const directly = "the directory itself"
	for _, step := range []struct{ name, hostRun, dir string }{
		{directly, "", fmt.Sprintf("/proc/self/fd/%d", mounted.Fd())},
		{"its parent", run, "/run/openvswitch"},
		{"by its other name", run, "/var/run/openvswitch"},
	} {
		name := step.name
		a := healthAgent(ofswitch.NewFake(flows.Check))
		a.opt.HostRun, a.cfg.OVSRunDir = step.hostRun, step.dir
		if status, text := ask(a, "/healthz"); status != http.StatusOK {
			t.Errorf("mounted is %s: %d %q", name, status, text)
		}
		if err := os.Remove(dir); err != nil {
			t.Fatal(err)
		}
		status, text := ask(a, "/healthz")
		if itself := name == directly; (status != http.StatusOK) != itself ||
			itself && !strings.Contains(text, "was deleted, and this container's mount does not follow") {
			t.Errorf("mounted is %s, which was deleted: %d %q", name, status, text)
		}
		mkdir()
		if name == directly {
			continue
		}
		if status, text := ask(a, "/healthz"); status != http.StatusOK {
			t.Errorf("mounted is %s, which was recreated: %d %q", name, status, text)
		}
	}
}

// TestHealthPortTaken: another process at healthAddr does not end the agent; it is named, and the port is taken as soon
// as it is free.
func TestHealthPortTaken(t *testing.T) {
	other, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	a := healthAgent(ofswitch.NewFake(flows.Check))
	a.cfg.HealthAddr = netip.MustParseAddrPort(other.Addr().String())
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); a.serveHealth(ctx) }()
	problem := func() string {
		a.mu.Lock()
		defer a.mu.Unlock()
		return a.problems["health address"]
	}
	testenv.Until(t, "the port in use is a problem", func() bool { return problem() != "" })
	if got := problem(); !strings.Contains(got, "on healthAddr "+other.Addr().String()) ||
		!strings.Contains(got, "address already in use") {
		t.Errorf("problem %q", got)
	}
	other.Close()
	testenv.Until(t, "the free port answers", func() bool {
		r, err := http.Get(fmt.Sprintf("http://%s/livez", a.cfg.HealthAddr))
		if err != nil {
			return false
		}
		defer r.Body.Close()
		text, err := io.ReadAll(r.Body)
		return err == nil && string(text) == "ok\n"
	})
	if got := problem(); got != "" {
		t.Errorf("problem %q after the port was taken", got)
	}
	cancel()
	<-done
}

// TestReadingIsShared: however often it is asked for, the switch is read once in readingAge, also when that fails.
func TestReadingIsShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		reads, failure := 0, errors.New("no answer")
		r := newReading(func(context.Context) (int, error) {
			reads++
			if reads == 2 {
				return 0, failure
			}
			return reads, nil
		})
		for want := 1; want <= 4; want++ {
			for range 1000 {
				if got, err := r.get(); want == 2 && !errors.Is(err, failure) || want != 2 && (got != want || err != nil) {
					t.Fatalf("reading %d: %d, %v", want, got, err)
				}
			}
			time.Sleep(readingAge)
		}
		if reads != 4 {
			t.Errorf("the switch was read %d times, want 4", reads)
		}
	})
}
