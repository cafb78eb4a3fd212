package policy

import (
	"fmt"
	"net/netip"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/weft-cni/weft/pkg/model"
)

// The cluster of the benchmarks: 10,000 pods in 100 namespaces of 100 applications each, on 91 nodes, 110 of them
// attached here, and 5,000 policies. A policy selects one application of a namespace and allows another one of it, one
// of a team's namespaces and a block. The policies select only pods of this node, or all pods alike.
const (
	benchNamespaces = 100
	benchPods       = 10000
	benchPolicies   = 5000
	benchLocal      = 110
)

// processor makes the benchmark report CPU time, which does not depend on other programs of the machine.
func processor(b *testing.B) {
	used := func() time.Duration {
		var u syscall.Rusage
		if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
			b.Fatal(err)
		}
		return time.Duration(u.Utime.Nano() + u.Stime.Nano())
	}
	before := used()
	b.Cleanup(func() { b.ReportMetric((used()-before).Seconds()*1e3/float64(b.N), "cpu-ms/op") })
}

func benchPod(i int) Pod {
	ns, n := i%benchNamespaces, i/benchNamespaces
	p := Pod{Namespace: fmt.Sprint("ns", ns), Name: fmt.Sprint("pod", n), UID: "u", Node: fmt.Sprint("n", 1+i%90),
		Created: 1,
		Labels:  map[string]string{"app": fmt.Sprint("app", n%20), "pod": fmt.Sprint(i), "tier": "front"},
		Ports:   []ContainerPort{{"http", TCP, 8080}},
		Addrs:   []netip.Addr{netip.AddrFrom4([4]byte{10, byte(1 + i%90), byte(i >> 8), byte(i)})}}
	if i%90 == 0 && i/90 < benchLocal {
		p.Node = "n0"
	}
	return p
}

func benchPolicy(i int, ours bool) Policy {
	pod := i
	if ours {
		pod = i % benchLocal * 90
	}
	ns, app := pod%benchNamespaces, pod/benchNamespaces%20
	label := func(key, value string) *Selector { return &Selector{MatchLabels: map[string]string{key: value}} }
	return Policy{Namespace: fmt.Sprint("ns", ns), Name: fmt.Sprint("policy", i),
		PodSelector: *label("app", fmt.Sprint("app", app)), Types: []Direction{Ingress},
		Ingress: []Rule{{
			Peers: []Peer{{PodSelector: label("app", fmt.Sprint("app", (app+i/500)%20))},
				{NamespaceSelector: label("team", fmt.Sprint("team", (i+i/100)%50)),
					PodSelector: label("app", fmt.Sprint("app", (app+1)%20))},
				{IPBlock: &IPBlock{CIDR: netip.MustParsePrefix("192.0.2.0/24"),
					Except: []netip.Prefix{netip.MustParsePrefix("192.0.2.8/29")}}}},
			Ports: []Port{{Number: 8080}, {Name: "http"}},
		}}}
}

func benchResolver(ours bool) *Resolver {
	r := NewResolver("n0")
	for i := range benchNamespaces {
		r.SetNamespace(Namespace{Name: fmt.Sprint("ns", i), Labels: map[string]string{"team": fmt.Sprint("team", i%50)}})
	}
	for i := range benchPods {
		p := benchPod(i)
		r.SetPod(p)
		if p.Node == "n0" {
			r.SetAttachment(model.Attachment{ContainerID: fmt.Sprint(i), IfName: "eth0",
				Pod: model.PodRef{Namespace: p.Namespace, Name: p.Name, UID: "u"}, IPs: p.Addrs})
		}
	}
	for i := range benchPolicies {
		r.SetPolicy(benchPolicy(i, ours))
	}
	return r
}

// BenchmarkInitial resolves everything, as at the start of an agent, and reports the memory in use.
func BenchmarkInitial(b *testing.B) {
	b.Run("all policies about pods of this node", func(b *testing.B) { benchInitial(b, true) })
	b.Run("policies about all pods alike", func(b *testing.B) { benchInitial(b, false) })
}

func benchInitial(b *testing.B, ours bool) {
	heap := func() float64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&m)
		return float64(m.HeapAlloc) / 1e6
	}
	before := heap()
	var r *Resolver
	var c Changes
	processor(b)
	for b.Loop() {
		r = benchResolver(ours)
		c = r.Flush()
	}
	peers := 0
	for _, p := range c.Policies {
		for _, rule := range p.Ingress.Rules {
			peers += len(rule.Peers)
		}
	}
	b.ReportMetric(float64(len(c.Policies)), "policies")
	b.ReportMetric(float64(len(r.byKey)), "rules")
	b.ReportMetric(float64(peers), "peers")
	b.ReportMetric(heap()-before, "MB")
	runtime.KeepAlive(r)
}

// BenchmarkOnePolicy adds and deletes a policy that selects pods of this node.
func BenchmarkOnePolicy(b *testing.B) {
	r := benchResolver(true)
	r.Flush()
	more := benchPolicy(0, true)
	more.Name = "more"
	processor(b)
	for b.Loop() {
		r.SetPolicy(more)
		if got := len(r.Flush().Policies); got != 1 {
			b.Fatalf("%d policies are different, want 1", got)
		}
		r.DeletePolicy(more.ID())
		r.Flush()
	}
}

// BenchmarkOneLabel changes the application of another node's pod and back: two changes.
func BenchmarkOneLabel(b *testing.B) {
	r := benchResolver(true)
	r.Flush()
	p := benchPod(1000)
	other := p
	other.Labels = map[string]string{"app": "app5", "pod": "1000", "tier": "front"}
	changed := 0
	processor(b)
	for b.Loop() {
		r.SetPod(other)
		changed = len(r.Flush().Policies)
		r.SetPod(p)
		r.Flush()
	}
	b.ReportMetric(float64(changed), "policies")
}

// BenchmarkUnusedLabel changes a label that no policy uses.
func BenchmarkUnusedLabel(b *testing.B) {
	r := benchResolver(true)
	r.Flush()
	p := benchPod(1000)
	other := p
	other.Labels = map[string]string{"app": p.Labels["app"], "pod": "1000", "tier": "back"}
	processor(b)
	for b.Loop() {
		r.SetPod(other)
		if got := len(r.Flush().Policies); got != 0 {
			b.Fatalf("%d policies are different, want none", got)
		}
		r.SetPod(p)
		r.Flush()
	}
}

// BenchmarkEverybody adds and deletes a pod among 10,000 that one policy with many rules allows together.
func BenchmarkEverybody(b *testing.B) {
	r := benchResolver(true)
	p := benchPolicy(0, true)
	p.Name, p.Ingress = "all", []Rule{{Peers: []Peer{{NamespaceSelector: &Selector{}}}}}
	r.SetPolicy(p)
	r.Flush()
	one := benchPod(1000)
	processor(b)
	for b.Loop() {
		r.DeletePod(one.Namespace, one.Name)
		r.Flush()
		r.SetPod(one)
		r.Flush()
	}
}

// Benchmark200x200 resolves one policy that allows 200 pods to reach 200 of this node, and then one more peer.
func Benchmark200x200(b *testing.B) {
	world := func() *Resolver {
		r := NewResolver("n0")
		r.SetNamespace(Namespace{Name: "a"})
		for i := range 400 {
			p := Pod{Namespace: "a", Name: fmt.Sprint(i), Node: fmt.Sprint("n", i/200),
				Labels: map[string]string{"side": fmt.Sprint(i / 200)}, Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10,
					byte(i / 200), 0, byte(i % 200)})}}
			r.SetPod(p)
			if i < 200 {
				r.SetAttachment(model.Attachment{ContainerID: p.Name, Pod: model.PodRef{Namespace: "a", Name: p.Name},
					IPs: p.Addrs})
			}
		}
		r.SetPolicy(Policy{Namespace: "a", Name: "p", PodSelector: Selector{MatchLabels: map[string]string{"side": "0"}},
			Ingress: []Rule{{Peers: []Peer{{PodSelector: &Selector{MatchLabels: map[string]string{"side": "1"}}}},
				Ports: []Port{{Number: 80}}}}})
		return r
	}
	b.Run("from nothing", func(b *testing.B) {
		processor(b)
		for b.Loop() {
			world().Flush()
		}
	})
	b.Run("one peer more and less", func(b *testing.B) {
		r := world()
		r.Flush()
		more := Pod{Namespace: "a", Name: "more", Node: "n1", Labels: map[string]string{"side": "1"},
			Addrs: []netip.Addr{netip.AddrFrom4([4]byte{10, 1, 1, 1})}}
		processor(b)
		for b.Loop() {
			r.SetPod(more)
			r.Flush()
			r.DeletePod("a", "more")
			r.Flush()
		}
	})
}
