package programmer_test

import (
	"testing"

	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/ofswitch"
	"github.com/weft-cni/weft/pkg/policy"
	"github.com/weft-cni/weft/pkg/state"
)

// TestPolicyWarning: what of a policy's annotations is invalid is told once, and when it is over.
func TestPolicyWarning(t *testing.T) {
	b := start(t, ofswitch.NewFake(flows.Check), pod("a", 2))
	good := policy.Policy{Namespace: "ns", Name: "p"}
	bad := good
	bad.Warning = "invalid value"
	staged := good
	staged.Staged = true
	for _, c := range []struct {
		what   string
		policy policy.Policy
		want   string
		told   int
	}{{"valid", good, "", 0}, {"invalid", bad, "invalid value", 1}, {"the same again", bad, "invalid value", 1},
		{"staged", staged, "", 1}, {"invalid again", bad, "invalid value", 2}} {
		b.Submit(state.SetPolicy{Policy: c.policy})
		b.swept(c.what)
		b.mu.Lock()
		owner := "problem of " + model.NetworkPolicy("ns", "p").Owner().String()
		if got := b.reports[owner]; (got == nil) != (c.want == "") || got != nil && got.Error() != c.want || b.told[owner] != c.told {
			t.Errorf("%s: told %v, %d times", c.what, got, b.told[owner])
		}
		b.mu.Unlock()
	}
}

// TestStagedPolicyIsReported: what would be wrong with a staged policy is said of its own owner.
func TestStagedPolicyIsReported(t *testing.T) {
	b := start(t, ofswitch.NewFake(flows.Check), pod("a", 2))
	p := policy.Policy{Namespace: "ns", Name: "p", Err: "no such thing", Staged: true}
	b.Submit(state.SetPolicy{Policy: p})
	b.swept("invalid")
	enforced, staged := p.ID().Owner(), model.Policy{ID: p.ID(), Staged: true}.Owner()
	const want = "staged; if it were enforced: the policy isolates its pods and allows nothing: no such thing"
	if got := b.Status().Quarantined; got[staged] != want || len(got) != 1 {
		t.Errorf("quarantined: %v", got)
	}
	p.Staged = false
	b.Submit(state.SetPolicy{Policy: p})
	b.swept("enforced")
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.reports[staged.String()] != nil || b.reports[enforced.String()] == nil || b.Status().Quarantined[enforced] == "" {
		t.Errorf("reports: %v", b.reports)
	}
}
