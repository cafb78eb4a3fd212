//go:build integration

package datapath

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/test/lab/podns"
)

// becomesTrue bounds the time from a manifest's edit until packets do what it says.
const becomesTrue = 2 * time.Second

// Nothing has to come for so long, and of so many rounds that were sent meanwhile, from a client that is not let in any
// more: it may be the machine that pauses, or the client.
const (
	quietFor    = 600 * time.Millisecond
	quietRounds = 20
)

// beat is a client that sends a datagram to each of a server's addresses every few milliseconds, and what of it
// arrives.
type beat struct {
	from *client
	tag  string
	sent *pump
	at   *tap
}

// beats has clients send to a server all the while.
func beats(t *testing.T, server *client, clients ...*client) map[string]*beat {
	t.Helper()
	heardAll := server.listen(t, "eth0", func(h heard) bool { return !h.leaving && h.tag != "" })
	all := map[string]*beat{}
	for i, c := range clients {
		b := &beat{from: c, tag: fmt.Sprintf("%05d", i), at: heardAll}
		mac := c.mac(t)
		frames := c.attempts(mac, b.tag, 8080, server.ips...)
		b.sent = c.pump(t, 10*time.Millisecond, func() [][]byte { return frames })
		all[c.name] = b
	}
	return all
}

// after lists what came of the client after a time.
func (b *beat) after(at time.Time) []heard {
	return b.at.heard(func(h heard) bool { return h.tag == b.tag && h.at.After(at) })
}

// opens waits until packets of both families arrive, and says how long after the edit the first did.
func (b *beat) opens(t *testing.T, what string, edit time.Time) {
	t.Helper()
	var first time.Time
	testenv.Eventually(t, 10*time.Second, func() error {
		families := map[bool]bool{}
		for _, h := range b.after(edit) {
			families[h.src.Addr().Is4()] = true
			first = h.at
			if len(families) == 2 {
				return nil
			}
		}
		return fmt.Errorf("%s: %s is not let in", what, b.from.name)
	})
	b.intime(t, what, first.Sub(edit))
}

// closes waits until nothing arrives any more, and says how long after the edit the last did.
func (b *beat) closes(t *testing.T, what string, edit time.Time) {
	t.Helper()
	last, sent := edit, b.sent.rounds.Load()
	testenv.Eventually(t, 10*time.Second, func() error {
		now := b.sent.rounds.Load()
		if frames := b.after(last); len(frames) > 0 {
			last, sent = frames[len(frames)-1].at, now
		}
		if time.Since(last) < quietFor || now-sent < quietRounds {
			return fmt.Errorf("%s: %s is still let in, or sends nothing: %d rounds since the last one that arrived", what,
				b.from.name, now-sent)
		}
		return nil
	})
	b.intime(t, what, last.Sub(edit))
}

// shut checks that nothing has come since the edit, although the client goes on sending.
func (b *beat) shut(t *testing.T, what string, edit time.Time) {
	t.Helper()
	b.sent.more(t, quietRounds)
	if frames := b.after(edit); len(frames) > 0 {
		t.Errorf("%s: %s is let in: %s", what, b.from.name, describe(frames))
	}
}

func (b *beat) intime(t *testing.T, what string, took time.Duration) {
	t.Helper()
	if limit := testenv.Patience(becomesTrue); took > limit {
		t.Errorf("%s: true for %s after %s, want at most %s", what, b.from.name, took, limit)
	}
	t.Logf("%s: true for %s %s after the edit", what, b.from.name, took.Round(time.Millisecond))
}

// What changes about pods, namespaces and addresses becomes true on the wire: labels of both, a pod that ends for good,
// one that terminates, an address that another pod gets.
func TestPolicyFollowsPods(t *testing.T) {
	const ns = "chg"
	wall := policyManifest(ns, "wall",
		"podSelector: {matchLabels: {app: server}}, ingress: [{from: [{podSelector: {matchLabels: {role: friend}}}, "+
			"{namespaceSelector: {matchLabels: {team: red}}}]}]")
	server, open := walledPod(ns, "server", "node1", "app: server"), walledPod(ns, "server", "node1", "app: open")
	steps := ""
	for i := range 3 {
		steps += policyManifest(ns, fmt.Sprintf("step-%d", i+1), fmt.Sprintf("podSelector: {matchLabels: {step: n%d}}", i+1))
	}
	w := upWalled(t, "polchg", map[string]string{
		"ns.yaml": namespaceManifest("other", "team: blue"), "wall.yaml": wall + steps, "server.yaml": server,
		"pods.yaml": walledPod(ns, "near", "node1", "app: x") + walledPod(ns, "far", "node2", "app: x") + walledPod("other",
			"guest", "node2", "app: x"),
	})
	near, far, guest := w.pod(t, "near"), w.pod(t, "far"), w.pod(t, "guest")
	b := beats(t, w.pod(t, "server"), near, far, guest)
	pods := func(role, more string) []string {
		return []string{walledPod(ns, "near", "node1", "app: x"+role, more), walledPod(ns, "far", "node2", "app: x"+role,
			more), walledPod("other", "guest", "node2", "app: x")}
	}
	check := func(what string, edit time.Time, f func(b *beat, t *testing.T, what string, edit time.Time),
		names ...string) {
		t.Helper()
		for _, name := range names {
			f(b[name], t, what, edit)
		}
		if problem := w.Status().Problem; problem != "" {
			t.Fatalf("%s: %s", what, problem)
		}
	}
	const nearName, farName, guestName = ns + "/near", ns + "/far", "other/guest"
	all := []string{nearName, farName, guestName}
	opens, closes, shut := (*beat).opens, (*beat).closes, (*beat).shut
	// told waits until the agent has programmed what was written before, of which it may show nothing: it learns of pods
	// in the order of their changes, those of one edit in the order of their names, and of this one last.
	step := 0
	told := func() {
		t.Helper()
		step++
		w.write(t, "step.yaml", walledPod(ns, "zz-step", "node1", fmt.Sprintf("step: n%d", step)))
		w.enforces(t, "node1", ns, fmt.Sprintf("step-%d", step), "wall")
	}

	check("from the start", time.Time{}, shut, all...)
	check("a pod's label comes", w.write(t, "pods.yaml", pods(", role: friend", "")...), opens, nearName, farName)
	// Terminating pods have their rights as long as they have their address.
	w.write(t, "pods.yaml", pods(", role: friend", `, deletionTimestamp: "2026-01-02T03:04:05Z"`)...)
	told()
	check("a pod terminates", time.Now(), opens, nearName, farName)
	ended := strings.ReplaceAll(strings.Join(pods(", role: friend", ""), ""), "---\n", "---\nstatus: {phase: Succeeded}\n")
	check("a pod has ended", w.write(t, "pods.yaml", ended), closes, nearName, farName)
	check("it runs after all", w.write(t, "pods.yaml", pods(", role: friend", "")...), opens, nearName, farName)
	check("a pod's label goes", w.write(t, "pods.yaml", pods("", "")...), closes, nearName, farName)
	check("a namespace's label comes", w.write(t, "ns.yaml", namespaceManifest("other", "team: red")), opens, guestName)
	check("a namespace's label goes", w.write(t, "ns.yaml", namespaceManifest("other", "team: blue")), closes, guestName)
	check("the server is selected no longer", w.write(t, "server.yaml", open), opens, all...)
	check("the server is selected again", w.write(t, "server.yaml", server), closes, all...)
	// Isolated pods stay isolated while they terminate, and when they have ended but stand.
	edit := w.write(t, "server.yaml", strings.Replace(server, "metadata: {",
		`metadata: {deletionTimestamp: "2026-01-02T03:04:05Z", `, 1))
	told()
	check("the server terminates", edit, shut, all...)
	w.write(t, "server.yaml", server+"status: {phase: Succeeded}\n")
	told()
	check("the server has ended", edit, shut, all...)
}

// A pod that gets another's address gets none of its rights, not for a packet, and its walls neither.
func TestPolicyAddressOfAnother(t *testing.T) {
	const ns = "reuse"
	w := upWalled(t, "polreuse", map[string]string{
		"base.yaml": walledPod(ns, "server", "node1", "app: server") + walledPod(ns, "server2", "node2", "app: server") +
			walledPod(ns, "asker", "node2", "app: x") +
			policyManifest(ns, "wall",
				"podSelector: {matchLabels: {app: server}}, ingress: [{from: [{podSelector: {matchLabels: {role: friend}}}]}]") +
			policyManifest(ns, "friends", "podSelector: {matchLabels: {role: friend}}, ingress: []"),
	})
	w.write(t, "pods.yaml", walledPod(ns, "before", "node1", "role: friend"))
	before, asker := w.pod(t, "before"), w.pod(t, "asker")
	servers := []*client{w.pod(t, "server"), w.pod(t, "server2")}
	reach := func(from *client, to *client, want podns.Outcome) {
		t.Helper()
		for _, ip := range to.ips {
			testenv.Eventually(t, 5*time.Second, func() error {
				answer, err := from.outcome(podns.UDP, netip.AddrPortFrom(ip, 8080), 400*time.Millisecond)
				if err == nil && answer.Outcome != want {
					err = fmt.Errorf("%s to %s at %s: %s, want %s", from.name, to.name, ip, answer.Outcome, want)
				}
				return err
			})
		}
	}
	for _, s := range servers {
		reach(before, s, podns.Answered)
	}
	reach(asker, before, podns.Silent)
	w.write(t, "pods.yaml", "# no pods\n")
	w.gone(t, "before")
	w.forgetAddresses("node1")
	agent := w.node(t, "node1").Agent
	if err := agent.Signal(9); err != nil {
		t.Fatal(err)
	}
	testenv.Eventually(t, 30*time.Second, func() error {
		if n := w.node(t, "node1"); n.Agent == agent || n.Problem != "" {
			return errors.New("the agent is not back: " + n.Problem)
		}
		return nil
	})
	var taps []*tap
	for _, s := range servers {
		taps = append(taps, s.listen(t, "eth0", func(h heard) bool { return !h.leaving && h.tag == enemyNear }))
	}
	w.write(t, "pods.yaml", walledPod(ns, "after", "node1", "app: x"))
	after := w.pod(t, "after")
	if fmt.Sprint(after.ips) != fmt.Sprint(before.ips) {
		t.Fatalf("the new pod has the addresses %v, the old one had %v: this tests nothing", after.ips, before.ips)
	}
	mac := after.mac(t)
	var frames [][]byte
	for _, s := range servers {
		frames = append(frames, after.attempts(mac, enemyNear, 8080, s.ips...)...)
	}
	sent := after.pump(t, 5*time.Millisecond, func() [][]byte { return frames })
	reach(asker, after, podns.Answered)
	sent.more(t, 100)
	for i, p := range taps {
		if frames := p.heard(func(heard) bool { return true }); len(frames) > 0 {
			t.Errorf("a pod with the address of another is let in to %s: %s", servers[i].name, describe(frames))
		}
	}
	for _, s := range servers {
		reach(after, s, podns.Silent)
	}
	t.Logf("%v was a friend's address, and is not", after.ips)
}

// While a policy is replaced by others that say the same of two pods, in other words and under other names, the one
// that is forbidden gets nothing through, and the one that is allowed loses nothing.
func TestPolicyEditsOpenNoWindow(t *testing.T) {
	const ns = "edit"
	w := upWalled(t, "poledit", map[string]string{
		"base.yaml": walledPod(ns, "server", "node1", "app: server") + walledPod(ns, "quiet", "node1", "app: server") +
			walledPod(ns, "near", "node1", "app: enemy") + walledPod(ns, "far", "node2", "app: enemy") + walledPod(ns, "friend",
			"node2", "app: friend, role: guest"),
		"wall.yaml": policyManifest(ns, "p0",
			"podSelector: {}, ingress: [{from: [{podSelector: {matchLabels: {app: friend}}}]}]"),
	})
	server, quiet, near, far, friend := w.pod(t, "server"), w.pod(t, "quiet"), w.pod(t, "near"), w.pod(t, "far"), w.pod(t,
		"friend")
	w.enforces(t, "node1", ns, "p0")
	var streams []*stream
	l := quiet.serve(t, streamPort)
	for _, ip := range quiet.ips {
		for _, fromServer := range []bool{false, true} {
			streams = append(streams, friend.streamTo(t, quiet, l, podns.UDP, netip.AddrPortFrom(ip, streamPort), fromServer,
				fmt.Sprintf("%s, the server sends: %t", ip, fromServer)))
		}
	}
	allFlow(t, "before the edits", streams)
	b := beats(t, server, near, far)
	begin := time.Now()
	blocks := ""
	for _, ip := range friend.ips {
		blocks += fmt.Sprintf("{ipBlock: {cidr: %s/%d}}, ", ip, ip.BitLen())
	}
	selectors := []string{"{}", "{matchLabels: {app: server}}",
		"{matchExpressions: [{key: app, operator: In, values: [server, enemy]}]}",
		"{matchExpressions: [{key: app, operator: NotIn, values: [friend]}]}"}
	peers := []string{"{podSelector: {matchLabels: {app: friend}}}",
		"{podSelector: {matchExpressions: [{key: role, operator: Exists}]}}", blocks,
		"{namespaceSelector: {}, podSelector: {matchLabels: {role: guest}}}",
		"{podSelector: {matchLabels: {app: absent}}}, {podSelector: {matchLabels: {app: friend}}}"}
	ports := []string{"", fmt.Sprintf(", ports: [{protocol: UDP, port: %d}]", streamPort),
		", ports: [{protocol: UDP, port: 9000, endPort: 9999}, {port: tcp}]", ", ports: [{protocol: UDP}, {protocol: TCP}]"}
	const edits = 24
	for i := range edits {
		// Every second edit is of the rules alone, the others are a new policy in the place of the old one; or beside one of
		// no rules.
		name := fmt.Sprintf("p%d", i/2)
		spec := fmt.Sprintf("podSelector: %s, ingress: [{from: [%s]%s}]", selectors[i%len(selectors)],
			strings.TrimSuffix(peers[i%len(peers)], ", "), ports[(i/2)%len(ports)])
		text, names := policyManifest(ns, name, spec), []string{name}
		if i%3 == 0 {
			text += policyManifest(ns, "none", "podSelector: {}")
			names = append(names, "none")
		}
		w.write(t, "wall.yaml", text)
		w.enforces(t, "node1", ns, names...)
	}
	for _, one := range b {
		one.shut(t, "while policies were edited", time.Time{})
	}
	w.nothingLost(t, begin, streams)
	// They were heard had they come.
	edit := w.write(t, "wall.yaml", policyManifest(ns, "last", "podSelector: {}, ingress: [{}]"))
	for _, one := range b {
		one.opens(t, "at last everybody may", edit)
	}
	t.Logf("%d edits", edits)
}
