// Package report holds what weftctl shows of a node: the types that an agent answers with as JSON, and the functions
// that make them. The functions are pure: they take a snapshot, the switch's contents and status values, and return
// new values. They start no goroutine, take no lock, read no clock and ask no system, so any goroutine may call them.
//
// JSON keys are an interface: scripts read them. A key is never renamed. Lists are never null where a type says so.
//
// The package imports neither the agent nor anything that works on Linux alone, so that weftctl builds for every
// system; TestWeftctlImportsNoAgent (build) checks it.
package report

import (
	"github.com/weft-cni/weft/pkg/flows"
	"github.com/weft-cni/weft/pkg/model"
	"github.com/weft-cni/weft/pkg/openflow"
)

// APIVersion is the version of the agent's answers, and of the JSON that weftctl prints. It grows with every change
// that an older reader could not make sense of, and with every new path. Agents before it was introduced count as 1.
const APIVersion = 5

// Progress is how far the switch is programmed.
type Progress struct {
	// Programmed is the revision of the newest snapshot of which every flow is in the switch, less quarantined owners;
	// Desired is that of the newest snapshot. The switch is in sync when they are equal. 0: none yet.
	Programmed uint64 `json:"programmed"`
	Desired    uint64 `json:"desired"`
	// Flows and Groups count those of revision Programmed.
	Flows  int `json:"flows"`
	Groups int `json:"groups"`
	// Bundles counts the bundles sent to the switch since the agent started, rejected ones too. Repairs counts the
	// flows and groups that another program had changed.
	Bundles uint64 `json:"bundles"`
	Repairs uint64 `json:"repairs"`
	// ForeignFlows counts the flows on the bridge that Weft did not make, at the last reading; Foreign describes the
	// first few.
	ForeignFlows int      `json:"foreignFlows,omitempty"`
	Foreign      []string `json:"foreign,omitempty"`
	// Error says why the switch cannot be reached; empty when it can.
	Error string `json:"error,omitempty"`
}

// Programming is the state of the loop that programs the switch. Its maps and lists are replaced as a whole and never
// written after that, so a copy stays valid.
type Programming struct {
	Progress
	// Quarantined are the owners of which no flows are in the switch but those that isolate, and why: the switch or
	// the compiler rejects them, or they are policies that are invalid or over budget.
	Quarantined map[model.Owner]string
	// Conflicts are the keys that several owners claim; the first owner's flow is in the switch.
	Conflicts []flows.Conflict
	// Incomplete are the policies of which some rules allow less than they say, or some pods are closed, and why.
	Incomplete map[model.Owner]string
}

// PolicyProblems say, by policy as PolicyID.String shows it, why a policy is not programmed as it is written.
func (p Programming) PolicyProblems() map[string]string {
	problems := map[string]string{}
	for _, of := range []map[model.Owner]string{p.Incomplete, p.Quarantined} {
		for owner, why := range of {
			if owner.Kind.IsPolicy() {
				problems[owner.Policy().String()] = why
			}
		}
	}
	return problems
}

// CountPolicies is how many policies are quarantined.
func (p Programming) CountPolicies() int {
	n := 0
	for owner := range p.Quarantined {
		if owner.Kind.IsPolicy() {
			n++
		}
	}
	return n
}

// Counts are the packets that flows have counted since the agent started. The maps are never written.
type Counts struct {
	Drops map[flows.Reason]openflow.Stats
	Rules map[RuleID]openflow.Stats
}

// RuleID is a rule of a policy, or what the policy denies.
type RuleID struct {
	Policy model.PolicyID
	flows.Rule
}

// VerdictName is a rule's verdict as metrics, logs and reports name it.
func VerdictName(r flows.Rule) string {
	name := map[model.Verdict]string{model.Accept: "allowed", model.Deny: "denied", model.Pass: "passed"}[r.Verdict]
	if r.Staged {
		return "would be " + name
	}
	return name
}
