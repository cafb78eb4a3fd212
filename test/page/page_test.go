//go:build integration

package page

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/chromedp"
	"github.com/chromedp/chromedp/kb"

	"github.com/weft-cni/weft/internal/ui"
	"github.com/weft-cni/weft/pkg/report"
	"github.com/weft-cni/weft/pkg/report/api"
	"github.com/weft-cni/weft/pkg/trace/walk"
	"github.com/weft-cni/weft/test/scenario"
)

// shop are the agents of three nodes with the examples' shop and its policies.
func shop(t *testing.T) []*scenario.Agent {
	t.Helper()
	var manifests []string
	for _, pattern := range []string{"shop", "shop-policies"} {
		files, err := filepath.Glob("../../examples/" + pattern + "/*.yaml")
		if err != nil || len(files) == 0 {
			t.Fatalf("%v, %v", files, err)
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			manifests = append(manifests, string(text))
		}
	}
	const nodes = 3
	agents, err := scenario.Agents(strings.Join(manifests, "\n---\n"), nodes)
	if err != nil {
		t.Fatal(err)
	}
	return agents
}

func byName(agents []*scenario.Agent) map[string]api.Source {
	list := map[string]api.Source{}
	for _, a := range agents {
		list[a.Name()] = a
	}
	return list
}

// visits are the views, with what shows that each is complete.
var visits = []struct{ name, hash, ready string }{
	{"nodes", "#/nodes", `document.querySelectorAll(".matrix td").length == 16 && document.querySelector(".problems")`},
	{"reach", "#/reach?from=shop&to=shop",
		`document.querySelectorAll(".grid .good").length && document.querySelectorAll(".grid .bad").length`},
	{"pipeline", "#/pipeline?node=node1",
		`document.querySelectorAll(".tables .open").length > 20 && document.querySelector(".more")`},
	{"owner", "#/pipeline?node=node1&owner=service/shop/backend",
		`document.querySelectorAll("table.flows tbody tr").length`},
	{"trace", "#/trace?from=pod/shop/frontend-0&to=service/shop/backend:80",
		`document.querySelectorAll(".step").length > 10 && document.querySelector(".verdict .good")`},
	{"denied", "#/trace?from=pod/shop/frontend-0&to=pod/shop/database-0:5432", `document.querySelector(".verdict .bad")`},
}

// TestPage: every view comes up at the width of a desktop and of a phone, in light and dark, and nothing is wider than
// the window. Pictures are among the test's artifacts.
func TestPage(t *testing.T) {
	agents := shop(t)
	agents[2].Change = func(s *report.Status) { s.Nodes[0].Unreachable = "packets of 1450 bytes do not arrive" }
	url := serve(t, ui.Agent{Node: "node4", Problem: "pod weft-agent-x7k2p is Pending: ErrImagePull"}, byName(agents))
	browser := start(t)
	grounds := map[string]string{}
	for _, size := range []struct {
		name          string
		width, height int64
	}{{"desktop", 1280, 800}, {"phone", 390, 844}} {
		for _, scheme := range []string{"light", "dark"} {
			t.Run(size.name+"/"+scheme, func(t *testing.T) {
				tab := open(browser, t, url, size.width, size.height, send(emulation.SetEmulatedMedia,
					emulation.SetEmulatedMediaParams{
						Features: []*emulation.MediaFeature{{Name: "prefers-color-scheme", Value: scheme}}}))
				for _, v := range visits {
					do(tab, t, chromedp.Navigate(url+v.hash), until(v.ready))
					picture := run(tab, t, chromedp.FullScreenshot(100))
					if err := os.WriteFile(filepath.Join(t.ArtifactDir(), v.name+".png"), picture, 0o644); err != nil {
						t.Fatal(err)
					}
					if over := value[int](tab, t, `document.documentElement.scrollWidth - innerWidth`); over > 0 {
						t.Errorf("%s is %d pixels wider than the window", v.name, over)
					}
					if text := value[string](tab, t, `document.querySelector("nav [aria-current]")?.innerText`); text == "" {
						t.Errorf("%s: no view is marked as the current one", v.name)
					}
				}
				grounds[scheme] = value[string](tab, t, `getComputedStyle(document.body).backgroundColor`)
			})
		}
	}
	if grounds["light"] == grounds["dark"] {
		t.Errorf("light and dark have the ground %s", grounds["light"])
	}
}

// TestKeyboard: the keyboard alone leads from the map to the policies of a cell, to the trace of its packets, and
// through its steps; and into a table of the pipeline.
func TestKeyboard(t *testing.T) {
	url := serve(t, ui.Agent{Node: "node4", Problem: "down"}, byName(shop(t)))
	tab := open(start(t), t, url, 1280, 800, chromedp.Navigate(url), until(`document.querySelector(".matrix")`))
	press := func(keys ...string) {
		t.Helper()
		for _, key := range keys {
			do(tab, t, chromedp.KeyEvent(key))
		}
	}
	focused := func() string {
		t.Helper()
		return value[string](tab, t, `(e => (e.getAttribute("aria-label") || e.innerText || e.dataset.key || "").trim())
			(document.activeElement)`)
	}
	var order []string
	for range 6 {
		press(kb.Tab)
		order = append(order, focused())
	}
	if want := []string{"Skip to the content", "Weft", "Nodes", "Reachability", "Pipeline", "Trace"}; !slices.Equal(order, want) {
		t.Fatalf("the focus goes to %q, want %q", order, want)
	}
	do(tab, t, chromedp.Focus(chromedp.CSS(`nav a[href="#/reach"]`)))
	press(kb.Enter)
	do(tab, t, until(`document.querySelector(".grid td")`))
	for range 20 {
		press(kb.Tab)
		if value[bool](tab, t, `document.activeElement.matches(".grid td")`) {
			break
		}
	}
	first := focused()
	for _, there := range []struct{ key, back string }{{kb.ArrowRight, kb.ArrowLeft}, {kb.ArrowDown, kb.ArrowUp}} {
		press(there.key)
		away := focused()
		press(there.back, there.back) // the second one leads over the edge, where the focus stays
		if now := focused(); now != first || away == first || first == "" {
			t.Errorf("two arrows led from %q to %q and %q", first, away, now)
		}
	}
	press(kb.End, kb.ArrowDown)
	at := focused()
	if at == first {
		t.Fatalf("the focus stays at %q", at)
	}
	press(kb.Enter)
	do(tab, t, until(`document.querySelector(".details .end, .details article")`))
	shown := value[string](tab, t, `document.querySelector(".details h2").innerText`)
	if !strings.HasPrefix(at, strings.Split(shown, " ")[0]) {
		t.Errorf("%q shows %q", at, shown)
	}
	press(kb.Tab)
	if now := focused(); now != "Follow its packets" {
		t.Fatalf("the focus is at %q", now)
	}
	press(kb.Enter)
	do(tab, t, until(`document.querySelector(".step.current")`), chromedp.Focus(chromedp.CSS(`[aria-label="Next step"]`)))
	press(kb.Enter, kb.ArrowRight, kb.ArrowLeft, kb.ArrowRight)
	label := value[string](tab, t, `document.querySelector(".stepper .label").innerText`)
	if !strings.HasPrefix(label, "Step 3 of ") {
		t.Errorf("after three steps and one back: %q", label)
	}
	do(tab, t, chromedp.Navigate(url+"#/pipeline"), until(`document.querySelector(".tables .open")`),
		chromedp.Focus(chromedp.CSS(`[data-key="table Classifier"]`)))
	press(kb.Enter)
	do(tab, t, until(`document.querySelector(".more table.flows")`))
	if now := focused(); now != "Classifier" {
		t.Errorf("the focus moved to %q", now)
	}
}

// TestLiveCounters: the counters of the pipeline grow on their own, until the button stops them.
func TestLiveCounters(t *testing.T) {
	url := serve(t, ui.Agent{Node: "node4", Problem: "down"}, byName(shop(t)))
	const packets = `document.querySelector(".tables tbody tr td:nth-of-type(3)").innerText`
	tab := open(start(t), t, url, 1280, 800, chromedp.Navigate(url+"#/pipeline?node=node1"),
		until(`document.querySelector(".tables .open")`))
	before := value[string](tab, t, packets)
	do(tab, t, until(fmt.Sprintf("%s != %q", packets, before)), chromedp.Click(chromedp.CSS(`[data-key=live]`)),
		until(`document.querySelector("[data-key=live]").getAttribute("aria-pressed") == "false"`))
}

// evil is text that would be markup.
const evil = `<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>`

// hostile is an agent whose objects have evil names and texts.
type hostile struct{ *scenario.Agent }

func (h hostile) Status(ctx context.Context) report.Status {
	s := h.Agent.Status(ctx)
	s.Version, s.Problems = evil, []string{evil}
	s.Nodes[0].Unreachable = evil
	return s
}

func (h hostile) Flows(ctx context.Context, object string) ([]report.Flow, error) {
	list, err := h.Agent.Flows(ctx, object)
	for i := range list {
		list[i].Owner, list[i].Match, list[i].Actions = evil, evil, evil
	}
	return list, err
}

func (h hostile) Trace(ctx context.Context) (walk.Node, error) {
	n, err := h.Agent.Trace(ctx)
	n.Pods = slices.Clone(n.Pods)
	policies := *n.Policies
	policies.Pods = slices.Clone(policies.Pods)
	for i := range n.Pods {
		n.Pods[i].Name += evil
	}
	for i := range policies.Pods {
		policies.Pods[i].Name += evil
	}
	n.Policies = &policies
	n.Flows = slices.Clone(n.Flows)
	for i := range n.Flows {
		n.Flows[i].Decides = append(slices.Clone(n.Flows[i].Decides), evil)
	}
	return n, err
}

// unprotected serves what is at a URL without its Content-Security-Policy, which would keep text that has become markup
// from being run, and from becoming any.
func unprotected(t *testing.T, at string) string {
	t.Helper()
	to, err := url.Parse(at)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(&httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) { r.Out.URL.Scheme, r.Out.URL.Host = to.Scheme, to.Host },
		ModifyResponse: func(r *http.Response) error {
			if r.Header.Get("Content-Security-Policy") == "" {
				return errors.New("want a policy to leave out")
			}
			r.Header.Del("Content-Security-Policy")
			return nil
		},
	})
	t.Cleanup(server.Close)
	return server.URL + to.Path
}

// TestHostileText: whatever names and texts agents send, they are shown as text, by the page's own care.
func TestHostileText(t *testing.T) {
	agents := map[string]api.Source{}
	for _, a := range shop(t) {
		agents[a.Name()] = hostile{a}
	}
	page := unprotected(t, serve(t, ui.Agent{Node: evil, Problem: evil}, agents))
	tab := open(start(t), t, page, 1280, 800)
	pod := "pod/shop/frontend-0" + evil
	for _, v := range []struct{ hash, ready string }{
		{"#/nodes", `document.querySelector(".matrix")`},
		{"#/reach", `document.querySelector(".grid td")`},
		{"#/pipeline?node=node1", `document.querySelector(".tables .open")`},
		{"#/pipeline?node=node1&owner=" + strings.ReplaceAll(evil, "=", "%3D"), `document.querySelector("h2 .mono")`},
		{"#/trace?from=" + strings.ReplaceAll(pod, "=", "%3D") + "&to=service/shop/backend:80", `document.querySelector(".step")`},
	} {
		do(tab, t, chromedp.Navigate(page+v.hash), until(v.ready),
			until(`[...document.querySelectorAll("main img")].every((i) => i.complete)`)) // an image that fails runs its script
		if n := value[int](tab, t, `document.querySelectorAll("main img, main script").length`); n > 0 {
			t.Errorf("%s: text has become %d elements", v.hash, n)
		}
		if text := value[string](tab, t, `document.querySelector("main").innerText`); !strings.Contains(text, evil) {
			t.Errorf("%s does not show the text as it is:\n%s", v.hash, text)
		}
		if value[bool](tab, t, `"hacked" in window`) {
			t.Errorf("%s: text was run", v.hash)
		}
	}
}
