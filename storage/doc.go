// Package storage keeps the audit log, the operations, grants and locks, and what
// a messenger has been told, in one bbolt file, so that a change of state and its
// record are one transaction.
//
// It owns the file, its one writer and the key that they are sealed with.
// What a record says and which step an operation may take is decided elsewhere;
// storage only compares revisions.
package storage
