// Package install walks the outsider's path, from the folders of two releases alone: check, install, test, faults that
// weftctl names, upgrade and rollback under traffic, removal. What it runs is what the pages say: it takes the commands
// from them. It has no code besides its tests (tag e2e), which test/e2e/install.sh runs (make e2e-install).
package install
