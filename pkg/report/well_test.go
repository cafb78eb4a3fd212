package report

import (
	"testing"
	"time"
)

// TestWell: each thing that is wrong makes a node not well; what is under way does not.
func TestWell(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(*Status)
		want   bool
	}{
		"well":             {func(*Status) {}, true},
		"behind":           {func(s *Status) { s.Flows.Programmed-- }, true},
		"restart":          {func(s *Status) { s.Restart = []Change{{Key: "datapath"}} }, true},
		"not ready":        {func(s *Status) { s.Ready = false }, false},
		"from a copy":      {func(s *Status) { s.FromCopy = new(time.Time) }, false},
		"problem":          {func(s *Status) { s.Problems = []string{"bridge: no answer"} }, false},
		"no switch":        {func(s *Status) { s.Flows.Error = "refused" }, false},
		"quarantined":      {func(s *Status) { s.Flows.Quarantined = map[string]string{"pod/a/b": "no"} }, false},
		"conflict":         {func(s *Status) { s.Flows.Conflicts = []string{"twice"} }, false},
		"API":              {func(s *Status) { s.API = []Feed{{Resource: "pods", Error: "forbidden"}} }, false},
		"pod":              {func(s *Status) { s.Pods = []Pod{{Problem: "not attached"}} }, false},
		"unreachable node": {func(s *Status) { s.Nodes = []Node{{Unreachable: "no podCIDRs"}} }, false},
		"rejected CIDR":    {func(s *Status) { s.Nodes = []Node{{Rejected: []string{"10.0.0.0/8"}}} }, false},
	} {
		s := Status{Ready: true, Nodes: []Node{{Name: "n2"}}, Pods: []Pod{{Pod: "a/b"}}, API: []Feed{{Resource: "pods"}}}
		s.Flows.Flows, s.Flows.Programmed, s.Flows.Desired = 60, 3, 3
		tc.change(&s)
		if s.Well() != tc.want {
			t.Errorf("%s: well is %t", name, !tc.want)
		}
		if want := name != "behind"; s.Programmed() != want {
			t.Errorf("%s: programmed is %t", name, !want)
		}
	}
}
