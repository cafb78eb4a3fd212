// Package policy compares Weft's NetworkPolicies with other projects' oracles: every case that cyclonus generates, on
// its nine pods and the ports and protocols that it probes, is evaluated by cyclonus' matcher, by the evaluator of
// sigs.k8s.io/kube-network-policies, by policy.Eval, and by packets that go through the compiled flows of two nodes.
// Objects take the way that the agent's take: pkg/kube, policy.Resolve, flows.Compiler. Everything runs on the test's
// goroutine.
//
//	go test -C test/oracle/policy ./...
//
// Where an oracle and Weft differ, docs/policy-oracles.md says where and why; the test fails when that changes, and
// -update writes it.
package policy
