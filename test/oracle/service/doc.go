// Package service compares Weft's view of Services with kube-proxy's own code: random Services and EndpointSlices go
// through pkg/kube and pkg/service on one side, and through k8s.io/kubernetes/pkg/proxy's change trackers and
// CategorizeEndpoints on the other. Everything runs on the test's goroutine.
//
//	go test -C test/oracle/service ./...
//
// runs 3,000 cases; -rapid.checks=N runs N. Where the two are meant to differ, the generator says so, and
// docs/services.md why.
package service
