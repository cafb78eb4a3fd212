package report

// Answer is what the agent of one node of a cluster said, as weftctl prints it.
type Answer[T any] struct {
	Node string `json:"node"`
	// Answer is absent when the agent did not give one.
	Answer *T `json:"answer,omitempty"`
	// Error says why the agent could not be asked, or its own reason; absent with an answer.
	Error string `json:"error,omitempty"`
}
