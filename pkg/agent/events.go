package agent

// The reasons of the Events that the agent writes; docs/events.md, which is generated, says what each means.
const (
	eventPartIgnored         = "PartIgnored"
	eventPolicyIncomplete    = "PolicyIncomplete"
	eventPodsClosed          = "PodsClosed"
	eventPolicyAllowsNothing = "PolicyAllowsNothing"
	eventFlowsRefused        = "FlowsRefused"
	eventAddressTaken        = "AddressTaken"
	eventOverBudget          = "OverBudget"
	eventHealthCheckFailed   = "HealthCheckFailed"
)
