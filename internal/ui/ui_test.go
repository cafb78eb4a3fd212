package ui_test

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"github.com/weft-cni/weft/internal/ui"
	"github.com/weft-cni/weft/pkg/openflow"
	"github.com/weft-cni/weft/pkg/report"
	"github.com/weft-cni/weft/pkg/report/api"
	"github.com/weft-cni/weft/pkg/trace/walk"
	"github.com/weft-cni/weft/pkg/trace/walk/walktest"
)

const token = "secret"

// source is an agent of walktest's cluster.
type source struct {
	api.Source
	node walk.Node
}

func (s source) Status(context.Context) report.Status {
	return report.Status{Node: s.node.Name, Ready: true, Drops: []report.Drop{},
		Nodes: []report.Node{{Name: "peer", Unreachable: "no answer"}}}
}

func (s source) Trace(context.Context) (walk.Node, error) { return s.node, nil }

func (s source) Flows(_ context.Context, object string) ([]report.Flow, error) {
	if object == "gone" {
		return nil, errors.New("not programmed yet")
	}
	one := report.Flow{Table: "Classifier", Owner: "pod/shop/web", Stats: openflow.Stats{Packets: 7, Bytes: 70}}
	drop := report.Flow{Table: "SpoofGuard", TableID: 10, Owner: "pipeline", Reason: "spoofed-ip",
		Stats: openflow.Stats{Packets: 3}}
	foreign := report.Flow{Table: "99", TableID: 99, Owner: "foreign"}
	if object != "" {
		return []report.Flow{one}, nil
	}
	return []report.Flow{one, drop, foreign}, nil
}

// page serves the page of two nodes and one whose agent does not run.
func page(t *testing.T) http.Handler {
	t.Helper()
	list := []ui.Agent{{Node: "node3", Problem: "no pod of weft-agent is on this node"}}
	for _, node := range walktest.Nodes(t) {
		list = append(list, ui.Agent{Node: node.Name, Client: listen(t, source{node: node})})
	}
	return ui.Handler(func(context.Context) ([]ui.Agent, error) { return list, nil }, token)
}

func listen(t *testing.T, s api.Source) api.Client {
	t.Helper()
	socket := filepath.Join(t.TempDir(), "agent.sock")
	var config net.ListenConfig
	listener, err := config.Listen(t.Context(), "unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: api.Handler(s)}
	go func() { _ = server.Serve(listener) }() // it ends with an error when the test closes it
	t.Cleanup(func() { _ = server.Close() })
	return api.Client{Socket: socket}
}

func request(t *testing.T, h http.Handler, method, target string, header map[string]string) *http.Response {
	t.Helper()
	r := httptest.NewRequestWithContext(t.Context(), method, target, http.NoBody)
	for name, value := range header {
		r.Header.Set(name, value)
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Result()
}

// get asks for data.
func get[T any](t *testing.T, h http.Handler, path string) (v T) {
	t.Helper()
	r := request(t, h, http.MethodGet, "http://127.0.0.1:8470/"+token+"/api/"+path, nil)
	defer r.Body.Close()
	text, err := io.ReadAll(r.Body)
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &v); err != nil {
		t.Fatalf("%s: %v: %s", path, err, text)
	}
	return v
}

// TestAccess: only who knows the address reads the page, from this machine's names, and not through another page.
func TestAccess(t *testing.T) {
	h := page(t)
	const here = "http://127.0.0.1:8470"
	for _, tc := range []struct {
		name, method, target string
		header               map[string]string
		want                 int
	}{
		{"the page", "GET", here + "/secret/", nil, 200},
		{"its head", "HEAD", here + "/secret/", nil, 200},
		{"data", "GET", here + "/secret/api/status", nil, 200},
		{"localhost through a tunnel", "GET", "http://localhost:1234/secret/", nil, 200},
		{"IPv6", "GET", "http://[::1]:8470/secret/", nil, 200},
		{"the page's own request", "GET", here + "/secret/api/status",
			map[string]string{"Sec-Fetch-Site": "same-origin", "Origin": here}, 200},
		{"typed", "GET", here + "/secret/", map[string]string{"Sec-Fetch-Site": "none"}, 200},
		{"without the slash", "GET", here + "/secret", nil, 303},
		{"without the token", "GET", here + "/", nil, 403},
		{"another token", "GET", here + "/secreT/", nil, 403},
		{"data without the token", "GET", here + "/api/status", nil, 403},
		{"a name that is resolved to this machine", "GET", "http://evil.example:8470/secret/", nil, 403},
		{"a name that begins like one of this machine", "GET", "http://127.0.0.1.evil.example/secret/", nil, 403},
		{"another site's page", "GET", here + "/secret/api/status", map[string]string{"Sec-Fetch-Site": "cross-site"}, 403},
		{"a page of another port", "GET", here + "/secret/api/status", map[string]string{"Sec-Fetch-Site": "same-site"}, 403},
		{"another origin", "GET", here + "/secret/api/status", map[string]string{"Origin": "http://127.0.0.1:9"}, 403},
		{"a write", "POST", here + "/secret/api/status", nil, 405},
		{"a file that does not exist", "GET", here + "/secret/none", nil, 404},
		{"a file above", "GET", here + "/secret/../ui.go", nil, 404},
	} {
		r := request(t, h, tc.method, tc.target, tc.header)
		r.Body.Close()
		if r.StatusCode != tc.want {
			t.Errorf("%s: status %d, want %d", tc.name, r.StatusCode, tc.want)
		}
		if csp := r.Header.Get("Content-Security-Policy"); !strings.Contains(csp, "default-src 'none'") ||
			strings.Contains(csp, "unsafe") {
			t.Errorf("%s: Content-Security-Policy %q", tc.name, csp)
		}
	}
	for file, want := range map[string]string{
		"main.js": "text/javascript; charset=utf-8", "style.css": "text/css; charset=utf-8", "icon.svg": "image/svg+xml",
		"": "text/html; charset=utf-8", "api/status": "application/json",
	} {
		r := request(t, h, http.MethodGet, here+"/secret/"+file, nil)
		r.Body.Close()
		if got := r.Header.Get("Content-Type"); got != want || r.Header.Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%s: %q, want %q", file, got, want)
		}
	}
}

// TestListen: each page has an address of its own, on the loopback interface, and ends with its context.
func TestListen(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	agents := func(context.Context) ([]ui.Agent, error) { return nil, nil }
	one, err := ui.Listen(ctx, agents, 0)
	if err != nil {
		t.Fatal(err)
	}
	other, err := ui.Listen(ctx, agents, 0)
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 2)
	for _, s := range []*ui.Server{one, other} {
		go func() { ended <- s.Serve(ctx) }()
	}
	tokens := map[string]bool{}
	for _, s := range []*ui.Server{one, other} {
		if !strings.HasPrefix(s.URL, "http://127.0.0.1:") {
			t.Errorf("%s is not of the loopback interface", s.URL)
		}
		tokens[strings.Split(s.URL, "/")[3]] = true
		r, err := http.Get(s.URL)
		if err != nil || r.StatusCode != http.StatusOK {
			t.Fatalf("%v, %v", r, err)
		}
		r.Body.Close()
	}
	if len(tokens) != 2 {
		t.Errorf("tokens %v, want two", tokens)
	}
	cancel()
	for range 2 {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}

func TestStatus(t *testing.T) {
	s := get[ui.Status](t, page(t), "status")
	if len(s.Nodes) != 3 || s.Nodes[0].Node != "node1" || s.Nodes[0].State != "problems" ||
		s.Nodes[0].Problems[0] != "node peer: no answer" {
		t.Errorf("%+v", s.Nodes)
	}
	if down := s.Nodes[2]; down.State != "no answer" || down.Status != nil ||
		!strings.HasPrefix(down.Problems[0], "no pod of weft-agent") {
		t.Errorf("%+v", down)
	}
	// The agent of this machine names itself; when it does not answer, the page says why.
	local := ui.Handler(ui.Local(listen(t, source{node: walktest.Nodes(t)[1]})), token)
	if s := get[ui.Status](t, local, "status"); len(s.Nodes) != 1 || s.Nodes[0].Node != "node2" {
		t.Errorf("%+v", s.Nodes)
	}
	if p := get[ui.Pipeline](t, local, "pipeline?node=node2"); p.Node != "node2" || len(p.Tables) == 0 {
		t.Errorf("%+v", p)
	}
	none := ui.Handler(ui.Local(api.Client{Socket: "/nonexistent"}), token)
	if s := get[ui.Status](t, none, "status"); s.Nodes[0].Node != "this node" ||
		!strings.Contains(s.Nodes[0].Problems[0], "/nonexistent") {
		t.Errorf("%+v", s.Nodes)
	}
}

// TestReach: the map says the same as policy explain for every pair, with the reason.
func TestReach(t *testing.T) {
	h := page(t)
	cell := func(query, from, to string) ui.Cell {
		t.Helper()
		r := get[ui.Reach](t, h, "reach?"+query)
		for i, source := range r.Sources {
			for j, target := range r.Targets {
				if source == from && target == to {
					return r.Cells[i][j]
				}
			}
		}
		t.Fatalf("no %s to %s in %v, %v", from, to, r.Sources, r.Targets)
		return ui.Cell{}
	}
	for _, tc := range []struct {
		query, from, to string
		state           ui.State
		why             string
	}{
		{"", "pod/shop/client", "pod/shop/web-2:8080", ui.Reached, "Ingress: allowed by shop/web, rule 0"},
		{"", "pod/shop/other", "pod/shop/web-1:8080", ui.Denied, "Ingress"},
		{"targets=services", "outside", "service/shop/web:80", ui.Lost, "no-route"},
		{"", "pod/shop/web-1", "pod/shop/web-1:8080", ui.Itself, "no policy"},
		{"", "pod/shop/web-1", "pod/shop/client", ui.Reached, "no policy selects either end"},
		{"port=99", "pod/shop/client", "pod/shop/web-1:99", ui.Denied, "Ingress"},
		{"targets=services", "pod/shop/client", "service/shop/web:80", ui.Reached, "shop/web"},
		{"targets=services", "pod/shop/other", "service/shop/web:80", ui.Denied, "Ingress"},
		{"targets=services", "pod/shop/client", "service/shop/empty:80", ui.Lost, "no endpoint"},
	} {
		if got := cell(tc.query, tc.from, tc.to); got.State != tc.state || !strings.Contains(got.Why, tc.why) {
			t.Errorf("%s, %s to %s: %+v, want %s %q", tc.query, tc.from, tc.to, got, tc.state, tc.why)
		}
	}
	r := get[ui.Reach](t, h, "reach?from=CLIENT+other&to=web-1")
	if len(r.Sources) != 2 || len(r.Targets) != 1 || len(r.Cells) != 2 || len(r.Cells[1]) != 1 {
		t.Errorf("%+v", r)
	}
	if len(r.Notes) != 1 || !strings.HasPrefix(r.Notes[0], "node node3: ") {
		t.Errorf("notes %v: the missing node is not named", r.Notes)
	}
}

// TestReachDisagrees: flows that do not do what the policies say show on the map.
func TestReachDisagrees(t *testing.T) {
	nodes := walktest.Nodes(t)
	for i := range nodes {
		nodes[i].Policies.Policies = nil
	}
	list := []ui.Agent{{Client: listen(t, source{node: nodes[0]})}, {Client: listen(t, source{node: nodes[1]})}}
	h := ui.Handler(func(context.Context) ([]ui.Agent, error) { return list, nil }, token)
	r := get[ui.Reach](t, h, "reach?from=other&to=web-1")
	if r.Cells[0][0].State != ui.Disagree {
		t.Errorf("%+v", r)
	}
}

func TestTraceAndExplain(t *testing.T) {
	h := page(t)
	traces := get[ui.Traces](t, h, "trace?from=pod/shop/client&to=service/shop/web:80")
	if len(traces.Traces) != 1 || traces.Traces[0].Verdict != walk.Reaches || len(traces.Traces[0].Paths) != 2 ||
		len(traces.Traces[0].Paths[0].Hops[0].Steps) == 0 {
		t.Errorf("%+v", traces)
	}
	x := get[[]walk.Explanation](t, h, "explain?from=pod/shop/other&to=pod/shop/web-1:8080")
	if len(x) != 1 || x[0].Verdict != walk.Denied || x[0].Paths[0].Outcome != walk.Dropped {
		t.Errorf("%+v", x)
	}
	places := get[ui.Places](t, h, "places")
	if len(places.From) == 0 || len(places.To) <= len(places.From) {
		t.Errorf("%+v", places)
	}
	failed := get[map[string]string](t, h, "trace?from=pod/shop/none&to=outside:80")
	if want := `there is no pod "shop/none" on the nodes that were asked`; failed["error"] != want {
		t.Errorf("%q, want %q", failed["error"], want)
	}
}

func TestPipeline(t *testing.T) {
	h := page(t)
	p := get[ui.Pipeline](t, h, "pipeline?node=node1")
	byName := map[string]ui.Table{}
	for _, table := range p.Tables {
		byName[table.Name] = table
	}
	if c := byName["Classifier"]; c.Counts != (ui.Counts{Flows: 1, Packets: 7, Bytes: 70}) || c.Doc == "" ||
		len(c.Next) == 0 {
		t.Errorf("%+v", c)
	}
	if s := byName["SpoofGuard"]; s.Dropped != 3 {
		t.Errorf("%+v", s)
	}
	if byName["99"].Flows != 1 || byName["Output"].Name == "" {
		t.Errorf("tables %v", p.Tables)
	}
	if len(p.Owners) != 3 || p.OwnerCount != 3 || p.Owners[0].Owner != "pod/shop/web" {
		t.Errorf("owners %v", p.Owners)
	}
	for query, want := range map[string]int{"node=node1": 3, "node=node1&table=10": 1, "node=node1&owner=pod/shop/web": 1,
		"node=node1&table=10&owner=pod/shop/web": 0} {
		if f := get[ui.Flows](t, h, "flows?"+query); len(f.Flows) != want || f.Total != want {
			t.Errorf("%s: %+v, want %d", query, f, want)
		}
	}
	for query, want := range map[string]string{"node=none": `there is no node "none"`,
		"node=node3": "node node3: no pod of weft-agent is on this node", "node=node1&table=x": `invalid table "x"`,
		"node=node1&owner=gone": "node node1: the agent says: not programmed yet"} {
		if failed := get[map[string]string](t, h, "flows?"+query); failed["error"] != want {
			t.Errorf("%s: %q, want %q", query, failed["error"], want)
		}
	}
}
