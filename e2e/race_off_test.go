//go:build !race

package e2e

// raceFlag builds the server as these tests were built.
var raceFlag []string
