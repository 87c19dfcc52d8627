"""Machines as their kernels lay them out: what the readers read of them, by path; and what a Mac prints."""

from __future__ import annotations

from pathlib import Path

RTX = {
    "proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX x86_64 Kernel Module  570.133.07  Fri Mar 14 2025\n",
    "proc/driver/nvidia/gpus/0000:01:00.0/information": "Model: \t\t NVIDIA GeForce RTX 3090\nIRQ:   \t\t 89\n",
    "sys/bus/pci/devices/0000:01:00.0/vendor": "0x10de",
    "sys/bus/pci/devices/0000:01:00.0/device": "0x2204",
    "sys/bus/pci/devices/0000:01:00.0/revision": "0xa1",
    "sys/bus/pci/devices/0000:01:00.0/resource": "0xf6000000 0xf6ffffff 0x40200\n0xe0000000 0xefffffff 0x14220c\n",
    "sys/bus/pci/devices/0000:01:00.0/max_link_speed": "16.0 GT/s PCIe",
    "sys/bus/pci/devices/0000:01:00.0/current_link_width": "16",
    "sys/class/drm/card0/device/vendor": "0x10de",
    "sys/class/drm/card0/device/device": "0x2204",
}
"""A desktop with an RTX 3090, without nvidia-ml-py."""

RX_7900 = {
    "sys/class/drm/card1/device/vendor": "0x1002",
    "sys/class/drm/card1/device/device": "0x744c",
    "sys/class/drm/card1/device/revision": "0xc8",
    "sys/class/drm/card1/device/uevent": "DRIVER=amdgpu\nPCI_CLASS=30000\n",
    "sys/class/drm/card1/device/mem_info_vram_total": "25753026560",
    "sys/class/drm/card1/device/mem_info_vram_used": "1073741824",
    "sys/class/drm/card1/device/mem_info_vram_vendor": "samsung",
    "sys/class/drm/card1/device/mem_info_gtt_total": "33554432000",
    "sys/class/drm/card1/device/mem_info_gtt_used": "20971520",
    "sys/class/drm/card1/device/gpu_busy_percent": "97",
    "sys/class/drm/card1/device/pp_dpm_sclk": "0: 500Mhz\n1: 2431Mhz *\n2: 2526Mhz\n",
    "sys/class/drm/card1/device/max_link_speed": "16.0 GT/s PCIe",
    "sys/class/drm/card1/device/current_link_width": "16",
    "sys/class/drm/card1/device/hwmon/hwmon4/name": "amdgpu",
    "sys/class/drm/card1/device/hwmon/hwmon4/power1_average": "287000000",
    "sys/class/drm/card1/device/hwmon/hwmon4/temp2_label": "junction",
    "sys/class/drm/card1/device/hwmon/hwmon4/temp2_input": "88000",
    "sys/class/drm/card1/device/hwmon/hwmon4/temp2_crit": "110000",
    # A connector and the other node of the same card, which are no cards of their own.
    "sys/class/drm/card1-DP-1/status": "connected",
    "sys/class/drm/renderD128/dev": "226:128",
}

ARC = {
    "sys/class/drm/card0/device/vendor": "0x8086",
    "sys/class/drm/card0/device/device": "0xe20b",
    "sys/class/drm/card0/device/uevent": "DRIVER=xe\n",
    "sys/class/drm/card0/device/resource": "0x85000000 0x85ffffff 0x40200\n0x4000000000 0x43ffffffff 0x14220c\n",
    "sys/class/drm/card0/device/hwmon/hwmon2/name": "xe",
    "sys/class/drm/card0/device/hwmon/hwmon2/energy1_label": "card",
    "sys/class/drm/card0/device/hwmon/hwmon2/energy1_input": "5000000",
    "sys/class/drm/card0/device/hwmon/hwmon2/energy2_label": "pkg",
    "sys/class/drm/card0/device/hwmon/hwmon2/energy2_input": "3000000",
    "sys/class/drm/card0/device/tile0/gt0/freq0/act_freq": "2850",
    "sys/class/drm/card0/device/tile0/gt0/freq0/throttle/status": "0",
}

STRIX = {
    "sys/class/drm/card0/device/vendor": "0x1002",
    "sys/class/drm/card0/device/device": "0x1586",
    "sys/class/drm/card0/device/revision": "0xc1",
    "sys/class/drm/card0/device/uevent": "DRIVER=amdgpu\n",
    "sys/class/drm/card0/device/mem_info_vram_total": "536870912",
    "sys/class/drm/card0/device/mem_info_vram_used": "268435456",
    "sys/class/drm/card0/device/mem_info_vram_vendor": "unknown",
    "sys/class/drm/card0/device/mem_info_gtt_total": "128849018880",
    "sys/class/drm/card0/device/mem_info_gtt_used": "64424509440",
    "sys/class/drm/card0/device/hwmon/hwmon5/name": "amdgpu",
    "sys/class/drm/card0/device/hwmon/hwmon5/power1_input": "82000000",
    "sys/class/drm/card0/device/hwmon/hwmon5/power1_label": "PPT",
    "proc/meminfo": "MemTotal:       130000000 kB\n",
}

JETSON = {
    "proc/device-tree/model": "NVIDIA Jetson Orin Nano Engineering Reference Developer Kit Super\0",
    "proc/device-tree/compatible": "nvidia,p3768-0000+p3767-0005-super\0nvidia,p3767-0005\0nvidia,tegra234\0",
    "proc/meminfo": "MemTotal:        7802884 kB\nMemFree:          512000 kB\nMemAvailable:    2802884 kB\n",
    "etc/nv_tegra_release": "# R36 (release), REVISION: 4.3, GCID: 38968081, BOARD: generic, EABI: aarch64\n",
    "sys/class/hwmon/hwmon1/name": "ina3221",
    "sys/class/hwmon/hwmon1/in1_label": "VDD_IN",
    "sys/class/hwmon/hwmon1/in1_input": "5000",
    "sys/class/hwmon/hwmon1/curr1_input": "2000",
    "sys/class/devfreq/17000000.gpu/cur_freq": "918000000",
}

SPARK = {
    "proc/driver/nvidia/version": "NVRM version: NVIDIA UNIX Open Kernel Module for aarch64  580.95.05  Release\n",
    "proc/driver/nvidia/gpus/000f:01:00.0/information": "Model: \t\t NVIDIA GB10\n",
    "proc/meminfo": "MemTotal:       125513600 kB\nMemAvailable:   99000000 kB\n",
    "sys/bus/pci/devices/000f:01:00.0/vendor": "0x10de",
    "sys/bus/pci/devices/000f:01:00.0/device": "0x2e12",
}

MAC = """{"SPDisplaysDataType": [{"_name": "Apple M2 Pro", "spdisplays_mtlgpufamilysupport": "spdisplays_metal3",
"spdisplays_ndrvs": [{"_name": "Color LCD"}], "spdisplays_vendor": "sppci_vendor_Apple",
"sppci_bus": "spdisplays_builtin", "sppci_cores": "19", "sppci_device_type": "spdisplays_gpu",
"sppci_model": "Apple M2 Pro"}]}"""


def laid_out(root: Path, files: dict[str, str]) -> Path:
    """`root` with these files in it."""
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n" if "\n" not in text else text)
    return root
