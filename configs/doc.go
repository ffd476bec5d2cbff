// Package configs reads the server's configuration: one YAML file, decoded
// strictly, every mistake reported at once with its line. It also holds the
// shipped examples and policy sets, each of which a test loads.
//
// It says what a configuration may be; cmd makes the parts from it.
package configs
