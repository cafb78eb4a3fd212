package agent

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/pkg/config"
	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/kube"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/ofswitch"
	"github.com/weft-cni/weft/pkg/state"
)

// wellSurroundings are those of a node on which nothing is in Weft's way.
func wellSurroundings() surroundings {
	none := func() ([]string, error) { return nil, nil }
	return surroundings{
		preceding: func(string) ([]string, error) { return nil, nil }, proxyRules: none, advertisements: none,
		kernelDatapath: func() error { return nil },
		version:        func(context.Context, string) (string, error) { return "ovs-vswitchd (Open vSwitch) 3.1.0", nil },
	}
}

// startingAgent is an agent that is not ready, and its log. The API server is at the address.
func startingAgent(t *testing.T, server string) (*Agent, *bytes.Buffer) {
	t.Helper()
	var out bytes.Buffer
	log := slog.New(slog.NewTextHandler(&out, nil))
	a := &Agent{
		log: log, cfg: config.Default(), problems: map[string]string{}, around: wellSurroundings(), loop: heldLoop(t),
		opt: Options{CNIConfDir: "/host/etc/cni/net.d", HostRun: t.TempDir()},
	}
	kubeconfig := filepath.Join(t.TempDir(), "kubeconfig")
	text := `{"apiVersion":"v1","kind":"Config","current-context":"c","contexts":[{"name":"c","context":{"cluster":"c"}}],
		"clusters":[{"name":"c","cluster":{"server":"` + server + `"}}]}`
	if err := os.WriteFile(kubeconfig, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	client, err := kube.NewClient("", kubeconfig, nil)
	if err == nil {
		a.kube, err = kube.NewWatcher(client, "n1", a.loop.Submit, slog.New(slog.DiscardHandler))
	}
	if err != nil {
		t.Fatal(err)
	}
	return a, &out
}

// followAPI is the part of the API server, until it has an error to tell.
func followAPI(t *testing.T, a *Agent) {
	t.Helper()
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); a.kube.Run(ctx) }()
	defer func() { stop(); <-ended }()
	testenv.Until(t, "an error of the API server", func() bool {
		for _, f := range a.kube.Feeds() {
			if f.Err != nil {
				return true
			}
		}
		return false
	})
	a.setProblem(apiProblem, a.apiError())
}

// TestCausesAreNamed: what keeps a node from working, or its pods, is named with what to do in the log, the status,
// /readyz and the termination message; and it goes when it is over.
func TestCausesAreNamed(t *testing.T) {
	answer := func(status int) string {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) }))
		t.Cleanup(server.Close)
		return server.URL
	}
	unknown := httptest.NewUnstartedServer(nil)
	unknown.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)
	unknown.StartTLS()
	t.Cleanup(unknown.Close)
	closed := httptest.NewServer(nil)
	closed.Close()
	node := func(cidrs ...netip.Prefix) state.Change {
		return state.SetNode{Node: model.Node{Name: "n1", Addrs: []netip.Addr{addr("192.0.2.1")}, PodCIDRs: cidrs}}
	}
	look := func(change func(*surroundings)) func(*testing.T, *Agent) {
		return func(t *testing.T, a *Agent) {
			change(&a.around)
			if err := a.syncSurroundings(t.Context()); err != nil {
				t.Error(err)
			}
		}
	}
	for name, tc := range map[string]struct {
		server string
		cause  func(*testing.T, *Agent)
		want   []string
		over   func(*testing.T, *Agent)
	}{
		"API server unreachable": {server: closed.URL, cause: followAPI,
			want: []string{"API server", closed.URL, "connection refused", "set apiServer to an address of the API server"}},
		"401":  {server: answer(http.StatusUnauthorized), cause: followAPI, want: []string{"does not accept the agent's token"}},
		"403":  {server: answer(http.StatusForbidden), cause: followAPI, want: []string{"the agent's ClusterRole"}},
		"x509": {server: unknown.URL, cause: followAPI, want: []string{"x509", unknown.URL, "set apiServer to a name or address"}},
		"no Open vSwitch": {cause: func(t *testing.T, a *Agent) {
			t.Helper()
			a.setProblem(ovsdbPart, a.connectOVSDB(t.Context()))
		}, want: []string{"OVSDB", "is ovsdb-server running?", "no such file or directory"}},
		"old Open vSwitch": {cause: look(func(s *surroundings) {
			s.version = func(context.Context, string) (string, error) { return "ovs-vswitchd (Open vSwitch) 2.17.9\n", nil }
		}), want: []string{"2.17.9", "upgrade it to 3.1 or newer"}},
		"no kernel module": {cause: look(func(s *surroundings) { s.kernelDatapath = func() error { return errors.New("no module") } }),
			want: []string{"kernel module", "no module"}},
		"another plugin's file": {cause: look(func(s *surroundings) {
			s.preceding = func(dir string) ([]string, error) { return []string{"05-" + filepath.Base(dir)}, nil }
		}), want: []string{"05-net.d in /etc/cni/net.d come first by name", "remove the other plugin"}},
		"kube-proxy": {cause: look(func(s *surroundings) {
			s.proxyRules = func() ([]string, error) { return []string{"ip nat KUBE-SERVICES"}, nil }
		}), want: []string{"ip nat KUBE-SERVICES", "run kube-proxy --cleanup"}},
		"router advertisements": {cause: look(func(s *surroundings) {
			s.advertisements = func() ([]string, error) { return []string{"eth0"}, nil }
		}), want: []string{"the kernel ignores those on eth0", "sysctl -w net.ipv6.conf.eth0.accept_ra=2"}},
		"no pod CIDRs": {cause: func(t *testing.T, a *Agent) {
			t.Helper()
			a.loop.Submit(node())
			viewed(t, a.loop)
			a.setProblem(nodeProblem, a.selfKnown(t.Context()))
		}, want: []string{"node n1 has no podCIDRs yet", "--allocate-node-cidrs"}, over: func(t *testing.T, a *Agent) {
			t.Helper()
			a.loop.Submit(node(netip.MustParsePrefix("10.244.1.0/24")))
			viewed(t, a.loop)
			a.setProblem(nodeProblem, a.selfKnown(t.Context()))
		}},
	} {
		t.Run(name, func(t *testing.T) {
			if tc.server == "" {
				tc.server = closed.URL
			}
			a, log := startingAgent(t, tc.server)
			tc.cause(t, a)
			message := filepath.Join(t.TempDir(), "termination-log")
			if err := os.WriteFile(message, []byte("of the last container"), 0o600); err != nil {
				t.Fatal(err)
			}
			if err := WriteTermination(message, a.lastWords()); err != nil {
				t.Fatal(err)
			}
			last, err := os.ReadFile(message)
			if err != nil {
				t.Fatal(err)
			}
			code, readyz := ask(a, "/readyz")
			for where, text := range map[string]string{
				"log": strings.ReplaceAll(log.String(), `\"`, `"`), "readiness": a.unready(), "/readyz": readyz, "termination message": string(last),
				"status": strings.Join(reporter{a}.Status(t.Context()).Problems, "\n"),
			} {
				for _, want := range tc.want {
					if !strings.Contains(text, want) {
						t.Errorf("%s: no %q in %q", where, want, text)
					}
				}
			}
			if code != http.StatusServiceUnavailable || strings.Contains(string(last), "of the last container") {
				t.Errorf("/readyz answers %d; termination message %q", code, last)
			}
			a.around = wellSurroundings()
			if err := a.syncSurroundings(t.Context()); err != nil {
				t.Error(err)
			}
			if tc.over != nil {
				tc.over(t, a)
			}
			delete(a.problems, apiProblem)
			delete(a.problems, ovsdbPart)
			if len(a.problems) > 0 {
				t.Errorf("when it is over: %q", a.problems)
			}
		})
	}
}

// TestReadinessNamesProblems: a node that is ready and has problems says ok first, and each problem. What is only
// beside the way is not what a start waits for.
func TestReadinessNamesProblems(t *testing.T) {
	a := healthAgent(ofswitch.NewFake(flows.Check))
	a.problems = map[string]string{proxyProblem: "rules", "zoo": "closed"}
	if status, text := ask(a, "/readyz"); status != http.StatusServiceUnavailable ||
		text != "waiting for zoo: closed\nkube-proxy: rules\nzoo: closed" {
		t.Errorf("before: %d %q", status, text)
	}
	a.problems = map[string]string{}
	if status, text := ask(a, "/readyz"); status != http.StatusServiceUnavailable || text != "starting" {
		t.Errorf("without problems: %d %q", status, text)
	}
	if status, text := readiness("", []string{"kube-proxy: rules"}); status != http.StatusOK || text != "ok\nkube-proxy: rules" {
		t.Errorf("ready: %d %q", status, text)
	}
}

// TestQuestionsWithoutAnswer: what cannot be asked is an error, and says nothing about the rest.
func TestQuestionsWithoutAnswer(t *testing.T) {
	a, _ := startingAgent(t, "http://127.0.0.1:1")
	a.around.proxyRules = func() ([]string, error) { return nil, errors.New("netlink is away") }
	a.around.version = func(context.Context, string) (string, error) { return "", errors.New("no ovs-vswitchd") }
	a.around.preceding = func(string) ([]string, error) { return []string{"05-a.conf"}, nil }
	a.around.kernelDatapath = func() error { return errors.New("no module") }
	a.cfg.Datapath = config.DatapathNetdev // which needs none
	err := a.syncSurroundings(t.Context())
	if err == nil || err.Error() != "netlink is away" || len(a.problems) != 1 || a.problems[otherPluginProblem] == "" {
		t.Errorf("%v, %q", err, a.problems)
	}
}

// TestTermination: a long message is cut where the kubelet cuts it, and without the kubelet's file nothing is written.
func TestTermination(t *testing.T) {
	file := filepath.Join(t.TempDir(), "termination-log")
	if err := WriteTermination(file, []string{"text"}); err != nil {
		t.Error(err)
	}
	if _, err := os.Stat(file); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the file was made: %v", err)
	}
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	opt := Options{ConfigFile: filepath.Join(t.TempDir(), "none"), TerminationLog: file, Level: new(slog.LevelVar)}
	err := Run(ctx, opt)
	text, readErr := os.ReadFile(file)
	if err == nil || readErr != nil || !strings.Contains(string(text), "read the configuration") {
		t.Errorf("%v; %q, %v", err, text, readErr)
	}
	if err := WriteTermination(file, []string{strings.Repeat("x", 5000)}); err != nil {
		t.Error(err)
	}
	if text, err := os.ReadFile(file); err != nil || len(text) != maxTermination {
		t.Errorf("%d bytes, %v", len(text), err)
	}
}
