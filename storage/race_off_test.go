//go:build !race

package storage

const race = false
