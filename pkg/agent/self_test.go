package agent

import (
	"context"
	"errors"
	"log/slog"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/weft-cni/weft/internal/testing/fakekube"
	"github.com/weft-cni/weft/internal/testing/testenv"
	"github.com/weft-cni/weft/pkg/config"
	"github.com/weft-cni/weft/pkg/kube"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/report"
	"github.com/weft-cni/weft/pkg/state"
)

// TestPodCIDRsChange: the pods in the way of new pod CIDRs are named, no pod gets an address meanwhile, and all ends
// with the last of these pods.
func TestPodCIDRsChange(t *testing.T) {
	log := slog.New(slog.DiscardHandler)
	a := &Agent{log: log, cfg: config.Default(), problems: map[string]string{}}
	a.loop = heldLoop(t)
	set := func(cidr string) {
		a.loop.Submit(state.SetNode{Node: model.Node{Name: "n1", Addrs: []netip.Addr{addr("172.30.0.1")},
			PodCIDRs: []netip.Prefix{netip.MustParsePrefix(cidr)}}})
	}
	attachment := func(name, ip string) model.Attachment {
		return model.Attachment{ContainerID: name, Pod: model.PodRef{Namespace: "ns", Name: name}, OFPort: 20,
			IPs: []netip.Addr{addr(ip)}}
	}
	set("10.244.1.0/24")
	a.loop.Submit(state.SetAttachment{Attachment: attachment("web", "10.244.1.2")})
	a.loop.Submit(state.SetAttachment{Attachment: attachment("db", "10.244.1.3")})
	check := func(step, problem, refusal string) {
		t.Helper()
		viewed(t, a.loop)
		got := ""
		if err := report.SelfProblem(a.loop.View()); err != nil {
			got = err.Error()
		}
		if s := a.settings(); got != problem || s.NoAddresses != refusal || len(s.PodCIDRs) != 1 {
			t.Errorf("%s: problem %q, settings %+v; want %q, %q", step, got, s, problem, refusal)
		}
	}
	check("at first", "", "")
	set("10.244.7.0/24")
	check("changed",
		"node n1: its podCIDRs changed to [10.244.7.0/24] and attached pods have addresses of the old ones, "+
			"[10.244.1.0/24] stays in use\n"+
			"pods with addresses outside of [10.244.7.0/24] do not reach pods of other nodes: delete pod ns/db, ns/web; no "+
			"pod can start here before",
		"the node's podCIDRs changed to [10.244.7.0/24], and pods still have addresses of [10.244.1.0/24]: delete these "+
			"pods (weftctl status names them)")
	a.loop.Submit(state.DeleteAttachment{Key: attachment("web", "10.244.1.2").Key()})
	a.loop.Submit(state.DeleteAttachment{Key: attachment("db", "10.244.1.3").Key()})
	check("without the pods", "", "")
	// An agent that starts without a copy does not know the old range.
	a.loop.Submit(state.SetAttachment{Attachment: attachment("old", "10.244.1.2")})
	check("a pod from before",
		"pods with addresses outside of [10.244.7.0/24] do not reach pods of other nodes: delete pod ns/old", "")
}

// conditionTable has the row of the node's condition alone.
func conditionTable(a *Agent) *table {
	for _, p := range a.parts(nil) {
		if p.name == "node condition" {
			p.after = nil
			return newTable([]part{p}, a.setProblem)
		}
	}
	return nil
}

// TestConditionIsSetAgain: each Node object that needs it gets the condition, however often it is recreated; one that
// has it is left alone, and a failure is tried again.
func TestConditionIsSetAgain(t *testing.T) {
	client := fakekube.New(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}})
	log := slog.New(slog.DiscardHandler)
	a := &Agent{opt: Options{Node: "n1"}, log: log, client: client, problems: map[string]string{}}
	a.table = conditionTable(a)
	w, err := kube.NewWatcher(client, "n1", func(state.Change) {}, log)
	if err != nil {
		t.Fatal(err)
	}
	w.Unavailable = a.setUnavailable
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{}, 2)
	go func() { w.Run(ctx); ended <- struct{}{} }()
	go func() { _ = a.table.run(ctx); ended <- struct{}{} }()
	t.Cleanup(func() { stop(); <-ended; <-ended })
	patched := func() (n int) {
		for _, action := range client.Actions() {
			if action.Matches("patch", "nodes") || action.GetVerb() == "patch" {
				n++
			}
		}
		return n
	}
	has := func() bool {
		n, err := client.CoreV1().Nodes().Get(ctx, "n1", metav1.GetOptions{})
		return err == nil && len(n.Status.Conditions) == 1 && n.Status.Conditions[0].Status == corev1.ConditionFalse
	}
	testenv.Until(t, "the first object", has)
	testenv.Until(t, "the agent sees it", func() bool { return !a.unavailable.Load() })
	if err := client.CoreV1().Nodes().Delete(ctx, "n1", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
	tainted := &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}, Status: corev1.NodeStatus{
		Conditions: []corev1.NodeCondition{
			{Type: corev1.NodeNetworkUnavailable, Status: corev1.ConditionTrue, Reason: "NoRouteCreated"}}}}
	if _, err := client.CoreV1().Nodes().Create(ctx, tainted, metav1.CreateOptions{}); err != nil {
		t.Fatal(err)
	}
	testenv.Until(t, "the next object", has)
	if n := patched(); n != 2 {
		t.Errorf("%d patches for two objects", n)
	}
}

// TestConditionIsContested: another controller that sets the condition each time costs one patch in conditionPause.
func TestConditionIsContested(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client := fakekube.New(&corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "n1"}})
		a := &Agent{opt: Options{Node: "n1"}, log: slog.New(slog.DiscardHandler), client: client,
			problems: map[string]string{}}
		a.table = conditionTable(a)
		ctx, stop := context.WithTimeoutCause(t.Context(), time.Minute, errors.New("the test is over"))
		defer stop()
		go func() { _ = a.table.run(ctx) }()
		for ctx.Err() == nil {
			a.setUnavailable(true)
			time.Sleep(10 * time.Millisecond)
		}
		if n := len(client.Actions()); n < 10 || n > 14 {
			t.Errorf("%d patches in a minute", n)
		}
		synctest.Wait()
	})
}
