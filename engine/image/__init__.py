"""Frames and tensors: conversion, colour and geometry, effects, temporal accumulation, user hooks."""
