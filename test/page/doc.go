// Package page tests the page of `weftctl ui` in Debian's Chromium, over the agents of a cluster on paper
// (test/scenario). Its pictures are among the artifacts of the tests: go test -tags integration -artifacts ./page
package page
