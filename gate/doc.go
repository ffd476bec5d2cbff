// Package gate is the one way to a cluster. Every call of every tool passes
// through it in the same order: record, decide, preview, approve, execute,
// record. The order is written out in code, because a configurable one could
// miss a stage.
//
// It declares what it needs of its neighbours (Store, Cluster) and owns the
// life of an Operation: who may move it is decided in approvals, that it moves
// together with its Record and only once is decided here.
package gate
