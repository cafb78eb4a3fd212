// Package hostile feeds an agent's pipeline absurd, huge and malicious objects beside honest ones. The objects come
// through a real watch of an API server (internal/testing/apiserver), are joined, resolved and compiled by the agent's
// own loop, and end in a fake switch that rejects what Open vSwitch would.
//
// It proves that honest objects keep their flows, that packets of honest pods go where they went, and that flows and
// memory stay within figures that do not depend on the machine. What belongs to the node's own network (host.Desired)
// is tested in pkg/agent. Nothing here needs root.
package hostile
